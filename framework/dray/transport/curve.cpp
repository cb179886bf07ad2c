#include "dray/transport/curve.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <toml++/toml.h>
#include <array>
#include <cerrno>
#include <filesystem>

namespace dray::transport {
namespace {

constexpr std::size_t kKeyText = 40;

Error bad(const std::string& path, const std::string& message) {
  return Error{ErrorCode::kInvalid, message, path, 0};
}

Result<toml::table> parse(const std::string& path) {
  if (access(path.c_str(), R_OK) != 0) {
    return Error{errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
                 errno == ENOENT ? "no such file; make keys with `dray keygen`" : "cannot be read",
                 path, 0};
  }
  try {
    return toml::parse_file(path);
  } catch (const toml::parse_error& error) {
    return bad(path + ":" + std::to_string(error.source().begin.line),
               std::string(error.description()));
  }
}

Result<std::string> key_in(const toml::table& table, const char* name, const std::string& path) {
  const auto key = table[name].value<std::string>();
  if (!key) return bad(path, std::string("it has no '") + name + "' key");
  if (!is_curve_key(*key)) {
    return bad(path, std::string("'") + name + "' is no key: 40 characters of Z85");
  }
  return *key;
}

Status write_file(const std::string& path, const std::string& text, mode_t mode) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd < 0) {
    Error error = io_error("make", path, errno);
    if (errno == EEXIST) {
      error.code = ErrorCode::kConflict;
      error.message = "there is a key of this name already; choose another name, or remove it";
    }
    return error;
  }
  // Whatever the umask is.
  bool good = fchmod(fd, mode) == 0;
  good = good && write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  good = fsync(fd) == 0 && good;
  close(fd);
  return good ? Status() : Status(io_error("write", path, errno));
}

}  // namespace

CurveKeys make_curve_keys() {
  std::array<char, kKeyText + 1> public_key{};
  std::array<char, kKeyText + 1> secret_key{};
  DRAY_ASSERT(zmq_curve_keypair(public_key.data(), secret_key.data()) == 0);
  return {public_key.data(), secret_key.data()};
}

bool is_curve_key(const std::string& text) {
  std::array<std::uint8_t, kCurveKeyBytes> bytes{};
  return text.size() == kKeyText && zmq_z85_decode(bytes.data(), text.c_str()) != nullptr;
}

Status write_curve_keys(const std::string& folder, const std::string& name, const CurveKeys& keys) {
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) return io_error("make", folder, failed.value());
  const std::string base = folder + "/" + name;
  const std::string shown = "public = \"" + keys.public_key + "\"\n";
  if (access((base + ".public").c_str(), F_OK) == 0) {
    return Error{ErrorCode::kConflict,
                 "there is a key of this name already; choose another name, or remove it",
                 base + ".public", 0};
  }
  DRAY_TRY(write_file(base + ".secret",
                      "# Keep this file to yourself. Others are given " + name + ".public.\n" +
                          shown + "secret = \"" + keys.secret_key + "\"\n",
                      0600));
  return write_file(base + ".public", shown, 0644);
}

Result<CurveKeys> read_curve_secret(const std::string& path) {
  auto table = parse(path);
  if (!table.ok()) return table.error();
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return io_error("stat", path, errno);
  if ((info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return bad(path,
               "others may read this secret key; chmod 600 it, and make a new one if they did");
  }
  auto public_key = key_in(*table, "public", path);
  if (!public_key.ok()) return public_key.error();
  auto secret_key = key_in(*table, "secret", path);
  if (!secret_key.ok()) return secret_key.error();
  std::array<char, kKeyText + 1> derived{};
  if (zmq_curve_public(derived.data(), secret_key->c_str()) != 0 || *public_key != derived.data()) {
    return bad(path, "the two keys do not belong together; make new ones with `dray keygen`");
  }
  return CurveKeys{*public_key, *secret_key};
}

Result<std::string> read_curve_public(const std::string& path) {
  auto table = parse(path);
  if (!table.ok()) return table.error();
  return key_in(*table, "public", path);
}

Result<AllowedKeys> read_allow_list(const std::string& path) {
  auto table = parse(path);
  if (!table.ok()) return table.error();
  AllowedKeys allowed;
  for (const auto& [role, node] : *table) {
    const std::string at = path + ":" + std::to_string(node.source().begin.line);
    const std::map<std::string_view, Role> roles{
        {"worker", Role::kWorker}, {"publisher", Role::kPublisher}, {"peer", Role::kPeer}};
    const auto found = roles.find(role.str());
    if (found == roles.end() || !node.is_table()) {
      return bad(at, "'" + std::string(role.str()) +
                         "' is no role; write [worker], [publisher] or (of push/pull and "
                         "request/reply) [peer], and below it NAME = \"KEY\"");
    }
    const auto bit = static_cast<unsigned>(found->second);
    for (const auto& [name, value] : *node.as_table()) {
      const std::string line = path + ":" + std::to_string(value.source().begin.line);
      const auto key = value.value<std::string>();
      if (!key || !is_curve_key(*key)) {
        return bad(line, "'" + std::string(name.str()) +
                             "' is no key: 40 characters of Z85, as in a "
                             ".public file");
      }
      auto& entry = allowed[*key];
      if ((entry.roles & bit) != 0) {
        return bad(line, "this key is there already, as '" + entry.name + "'");
      }
      entry.name = name.str();
      entry.roles |= bit;
    }
  }
  return allowed;
}

}  // namespace dray::transport
