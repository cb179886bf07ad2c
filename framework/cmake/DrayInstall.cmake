# What is installed: libdray with its public headers, the SDK of plugins, the dray command, the shop.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
foreach(each Threads absl cppzmq spdlog tomlplusplus)
  find_package(${each} REQUIRED)
endforeach()
find_library(DRAY_ISAL isal REQUIRED)

# One library of both layers. Programs see what DRAY_API marks.
set(map ${PROJECT_SOURCE_DIR}/framework/cmake/libdray.map)
add_library(dray_library SHARED $<TARGET_OBJECTS:dray_framework> $<TARGET_OBJECTS:dray_patterns>)
target_link_libraries(dray_library PUBLIC Threads::Threads
                      PRIVATE absl::btree cppzmq spdlog::spdlog tomlplusplus::tomlplusplus ${DRAY_ISAL}
                              ${CMAKE_DL_LIBS})
target_link_options(dray_library PRIVATE -Wl,--version-script=${map} -Wl,--no-undefined)
set_target_properties(dray_library PROPERTIES
  OUTPUT_NAME dray EXPORT_NAME dray LINK_DEPENDS ${map} VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})  # until 1.0 each minor may differ
target_compile_features(dray_library INTERFACE cxx_std_20)
add_library(dray_testing INTERFACE)  # <dray/testing.hpp>
set_target_properties(dray_testing PROPERTIES EXPORT_NAME testing)
target_link_libraries(dray_testing INTERFACE dray_library)

set_target_properties(dray_plugin_old_abi PROPERTIES EXCLUDE_FROM_ALL OFF)

set(public_headers
  framework/dray/clock.hpp framework/dray/codec.hpp framework/dray/consumer.hpp
  framework/dray/export.hpp framework/dray/fields.hpp framework/dray/handler.hpp framework/dray/handler_policy.hpp
  framework/dray/log.hpp framework/dray/message.hpp framework/dray/middleware.hpp
  framework/dray/outcome.hpp framework/dray/plugin_abi.h
  framework/dray/publisher.hpp framework/dray/result.hpp framework/dray/settings.hpp
  framework/dray/standard_error_log.hpp framework/dray/step_journal.hpp framework/dray/text.hpp framework/dray/trace.hpp framework/dray/uuid.hpp
  patterns/dray/endpoint_keys.hpp patterns/dray/group_limits.hpp patterns/dray/message_life.hpp patterns/dray/pipeline.hpp
  patterns/dray/remote_publisher.hpp patterns/dray/request_reply.hpp patterns/dray/spooler.hpp patterns/dray/testing.hpp
  patterns/dray/worker.hpp)
install(FILES ${public_headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/dray COMPONENT dev)
install(TARGETS dray_library dray_testing dray_plugin dray_plugin_old_abi EXPORT dray-targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT dev
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/dray)
install(EXPORT dray-targets NAMESPACE dray:: DESTINATION ${package} COMPONENT dev)
configure_package_config_file(framework/cmake/dray-config.cmake.in
                              ${PROJECT_BINARY_DIR}/dray-config.cmake INSTALL_DESTINATION ${package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/dray-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/dray-config.cmake ${PROJECT_BINARY_DIR}/dray-config-version.cmake
        DESTINATION ${package} COMPONENT dev)
# From where they lie: the prefix may be another than was planned.
file(RELATIVE_PATH DRAY_PC_UP /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
foreach(each dray dray-plugin)
  configure_file(framework/cmake/${each}.pc.in ${PROJECT_BINARY_DIR}/${each}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${each}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
          COMPONENT dev)
endforeach()
install(FILES framework/FORMATS.md framework/PLUGIN_ABI.md patterns/PROTOCOL.md README.md CHANGELOG.md
        DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT dev)
set(soversion ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
foreach(each "runtime dray" "library libdray${soversion}" "dev libdray-dev" "shop dray-shop")
  string(REPLACE " " ";" each "${each}")
  list(GET each 0 component)
  list(GET each 1 package_name)
  install(FILES LICENSE RENAME copyright DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package_name}
          COMPONENT ${component})
  string(TOUPPER ${component} upper)
  set(CPACK_DEBIAN_${upper}_PACKAGE_NAME ${package_name})
endforeach()

if(DRAY_BUILD_APPS)
  install(TARGETS dray RUNTIME COMPONENT runtime)
  install(TARGETS order_plugin email_plugin invoice_plugin
          LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/dray COMPONENT shop)
  install(FILES apps/shop/shop.toml DESTINATION ${CMAKE_INSTALL_DATADIR}/dray COMPONENT shop)
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME dray)
set(CPACK_PACKAGE_CONTACT "Dray <dray@localhost>")
set(CPACK_PACKAGE_VENDOR Dray)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL runtime library dev shop)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${CMAKE_LIBRARY_OUTPUT_DIRECTORY})
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS OFF)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_RUNTIME_DESCRIPTION "broker-free durable work queue on ZeroMQ: the command")
set(CPACK_DEBIAN_LIBRARY_DESCRIPTION "broker-free durable work queue on ZeroMQ: the library")
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_DESCRIPTION "headers and libraries to write handlers for Dray, or to embed it")
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "libdray${soversion} (= ${PROJECT_VERSION})")
set(CPACK_DEBIAN_SHOP_PACKAGE_SECTION misc)
set(CPACK_DEBIAN_SHOP_DESCRIPTION "a shop of three apps that shows Dray at work")
set(CPACK_DEBIAN_SHOP_PACKAGE_DEPENDS "dray (= ${PROJECT_VERSION}), fonts-dejavu-core")
# Names in any script, on invoices.
set(CPACK_DEBIAN_SHOP_PACKAGE_RECOMMENDS "fonts-noto-core, fonts-noto-cjk")
include(CPack)
