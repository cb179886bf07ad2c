// DRAY_FIELDS: names the fields of a struct so that it travels as a MessagePack map.
//
//   struct Line { std::string product; int quantity = 1; std::optional<std::string> note;
//                 DRAY_FIELDS(product, quantity, note) };
//
// Keys are the field names. Reading: keys that the struct does not have are ignored, so a
// publisher may add fields; a key that is missing is an error that names its path
// ("lines[2].quantity: missing"), unless the field is a std::optional.
// Types: bool, integers, float, double, std::string, dray::Binary, std::vector, std::optional,
// std::map<std::string, T>, enums (as integers) and structs with DRAY_FIELDS.
//
// Threading: pure functions.
#pragma once

#include <concepts>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "dray/codec.hpp"
#include "dray/result.hpp"

#define DRAY_FIELDS(...)                                 \
  static constexpr std::string_view dray_field_names() { \
    return #__VA_ARGS__;                                 \
  }                                                      \
  auto dray_fields() {                                   \
    return std::tie(__VA_ARGS__);                        \
  }                                                      \
  auto dray_fields() const {                             \
    return std::tie(__VA_ARGS__);                        \
  }

namespace dray {

// Bytes that are not text: MessagePack bin.
struct Binary {
  std::string bytes;
};

template <typename T>
concept HasFields = requires(const T& value) {
  T::dray_field_names();
  value.dray_fields();
};

namespace fields {

// Next name of the comma-separated list that the macro made; advances `names`.
constexpr std::string_view next_name(std::string_view& names) {
  const auto comma = names.find(',');
  std::string_view name = names.substr(0, comma);
  names = comma == std::string_view::npos ? std::string_view{} : names.substr(comma + 1);
  while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
  while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
  return name;
}

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};
template <typename T>
struct IsTextMap : std::false_type {};
template <typename T>
struct IsTextMap<std::map<std::string, T>> : std::true_type {};

template <typename T>
void write(Encoder& encoder, const T& value) {
  if constexpr (HasFields<T>) {
    const auto members = value.dray_fields();
    encoder.map(std::tuple_size_v<std::remove_cvref_t<decltype(members)>>);
    std::string_view names = T::dray_field_names();
    std::apply(
        [&](const auto&... member) {
          ((encoder.text(next_name(names)), write(encoder, member)), ...);
        },
        members);
  } else if constexpr (std::same_as<T, bool>) {
    encoder.boolean(value);
  } else if constexpr (std::is_enum_v<T>) {
    write(encoder, static_cast<std::underlying_type_t<T>>(value));
  } else if constexpr (std::unsigned_integral<T>) {
    encoder.natural(value);
  } else if constexpr (std::signed_integral<T>) {
    encoder.integer(value);
  } else if constexpr (std::floating_point<T>) {
    encoder.real(static_cast<double>(value));
  } else if constexpr (std::same_as<T, Binary>) {
    encoder.binary(value.bytes);
  } else if constexpr (std::convertible_to<T, std::string_view>) {
    encoder.text(value);
  } else if constexpr (IsOptional<T>::value) {
    if (value) {
      write(encoder, *value);
    } else {
      encoder.nil();
    }
  } else if constexpr (IsVector<T>::value) {
    encoder.array(value.size());
    for (const auto& element : value) write(encoder, element);
  } else {
    static_assert(IsTextMap<T>::value, "this type cannot be a field of a message");
    encoder.map(value.size());
    for (const auto& [key, element] : value) {
      encoder.text(key);
      write(encoder, element);
    }
  }
}

inline Error mismatch(const std::string& path, std::string_view wanted, const Value& found) {
  return Error{
      ErrorCode::kInvalid,
      "expected " + std::string(wanted) + ", found " + std::string(kind_name(found.kind())), path,
      0};
}

template <typename T>
Status read_integer(const Value& value, T& out, const std::string& path) {
  using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
  Wide wide = 0;
  if (!value.get(wide)) return mismatch(path, "an integer in range", value);
  if (!std::in_range<T>(wide)) {
    return Error{ErrorCode::kInvalid, "integer " + std::to_string(wide) + " is out of range", path,
                 0};
  }
  out = static_cast<T>(wide);
  return {};
}

template <typename T>
Status read(const Value& value, T& out, const std::string& path) {
  if constexpr (HasFields<T>) {
    if (value.kind() != Value::Kind::kMap) return mismatch(path, "a map", value);
    Status status;
    std::string_view names = T::dray_field_names();
    auto read_member = [&](auto& member) {
      using Member = std::remove_cvref_t<decltype(member)>;
      const std::string name(next_name(names));
      if (!status.ok()) return;
      const std::string member_path = path.empty() ? name : path + "." + name;
      Value found;
      if (value.find(name, found)) {
        status = read(found, member, member_path);
      } else if constexpr (IsOptional<Member>::value) {
        member.reset();
      } else {
        status = Error{ErrorCode::kInvalid, "missing", member_path, 0};
      }
    };
    std::apply([&](auto&... member) { (read_member(member), ...); }, out.dray_fields());
    return status;
  } else if constexpr (std::same_as<T, bool>) {
    if (!value.get(out)) return mismatch(path, "a boolean", value);
  } else if constexpr (std::is_enum_v<T>) {
    std::underlying_type_t<T> number{};
    DRAY_TRY(read_integer(value, number, path));
    out = static_cast<T>(number);
  } else if constexpr (std::integral<T>) {
    return read_integer(value, out, path);
  } else if constexpr (std::floating_point<T>) {
    double number = 0;
    if (!value.get(number)) return mismatch(path, "a number", value);
    out = static_cast<T>(number);
  } else if constexpr (std::same_as<T, Binary>) {
    std::string_view bytes;
    if (!value.get_binary(bytes)) return mismatch(path, "binary", value);
    out.bytes.assign(bytes);
  } else if constexpr (std::same_as<T, std::string>) {
    std::string_view text;
    if (!value.get_text(text)) return mismatch(path, "text", value);
    out.assign(text);
  } else if constexpr (IsOptional<T>::value) {
    if (value.is_nil()) {
      out.reset();
      return {};
    }
    return read(value, out.emplace(), path);
  } else if constexpr (IsVector<T>::value) {
    if (value.kind() != Value::Kind::kArray) return mismatch(path, "an array", value);
    // One by one: what claims a million elements and has none must not cost their room.
    constexpr std::size_t kTrusted = 64;
    out.clear();
    out.reserve(std::min(value.size(), kTrusted));
    for (std::size_t i = 0; i < value.size(); ++i) {
      typename T::value_type element{};
      DRAY_TRY(read(value.at(i), element, path + "[" + std::to_string(i) + "]"));
      out.push_back(std::move(element));
    }
  } else {
    static_assert(IsTextMap<T>::value, "this type cannot be a field of a message");
    if (value.kind() != Value::Kind::kMap) return mismatch(path, "a map", value);
    out.clear();
    for (std::size_t i = 0; i < value.size(); ++i) {
      std::string_view key;
      if (!value.key_at(i).get_text(key)) return mismatch(path, "text keys", value.key_at(i));
      DRAY_TRY(read(value.value_at(i), out[std::string(key)], path + "." + std::string(key)));
    }
  }
  return {};
}

}  // namespace fields

// The MessagePack bytes of a value.
template <typename T>
std::string to_bytes(const T& value) {
  std::string bytes;
  Encoder encoder(bytes);
  fields::write(encoder, value);
  return bytes;
}

// Reads a T from MessagePack; the error names the field.
template <typename T>
Result<T> from_bytes(std::string_view bytes) {
  auto document = Document::parse(bytes);
  if (!document.ok()) return document.error();
  T value{};
  DRAY_TRY(fields::read(document->root(), value, ""));
  return value;
}

}  // namespace dray
