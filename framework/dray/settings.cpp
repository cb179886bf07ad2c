#include "dray/settings.hpp"

#include "dray/codec.hpp"
#include "dray/text.hpp"

namespace dray {

const Settings::Scalar* Settings::find(const std::string& key) const {
  read_.insert(key);
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

namespace {
template <typename T>
const T& expect(const Settings::Scalar& value, const std::string& key, const char* wanted) {
  if (const T* typed = std::get_if<T>(&value)) return *typed;
  throw SettingsError("setting '" + key + "' must be " + wanted);
}
}  // namespace

std::string Settings::text(const std::string& key) const {
  const Scalar* value = find(key);
  if (value == nullptr) throw SettingsError("setting '" + key + "' is missing");
  return expect<std::string>(*value, key, "text");
}

std::string Settings::text(const std::string& key, const std::string& otherwise) const {
  const Scalar* value = find(key);
  return value == nullptr ? otherwise : expect<std::string>(*value, key, "text");
}

std::int64_t Settings::integer(const std::string& key, std::int64_t otherwise) const {
  const Scalar* value = find(key);
  return value == nullptr ? otherwise : expect<std::int64_t>(*value, key, "an integer");
}

bool Settings::boolean(const std::string& key, bool otherwise) const {
  const Scalar* value = find(key);
  return value == nullptr ? otherwise : expect<bool>(*value, key, "true or false");
}

Milliseconds Settings::duration(const std::string& key, Milliseconds otherwise) const {
  const Scalar* value = find(key);
  if (value == nullptr) return otherwise;
  auto parsed = parse_duration(expect<std::string>(*value, key, "a duration like \"30s\""));
  if (!parsed.ok()) throw SettingsError("setting '" + key + "': " + parsed.error().text());
  return *parsed;
}

std::vector<std::string> Settings::unread() const {
  std::vector<std::string> left;
  for (const auto& [key, value] : values_) {
    if (read_.count(key) == 0) left.push_back(key);
  }
  return left;
}

std::string Settings::encode() const {
  std::string bytes;
  Encoder encoder(bytes);
  encoder.map(values_.size());
  for (const auto& [key, value] : values_) {
    encoder.text(key);
    if (const auto* flag = std::get_if<bool>(&value)) encoder.boolean(*flag);
    if (const auto* whole = std::get_if<std::int64_t>(&value)) encoder.integer(*whole);
    if (const auto* real = std::get_if<double>(&value)) encoder.real(*real);
    if (const auto* text = std::get_if<std::string>(&value)) encoder.text(*text);
  }
  return bytes;
}

Result<Settings> Settings::decode(std::string_view bytes) {
  if (bytes.empty()) return Settings{};
  auto document = Document::parse(bytes);
  if (!document.ok()) return document.error();
  const Value root = document->root();
  if (root.kind() != Value::Kind::kMap) {
    return Error{ErrorCode::kInvalid, "settings must be a map", "", 0};
  }
  std::map<std::string, Scalar> values;
  for (std::size_t i = 0; i < root.size(); ++i) {
    std::string_view key;
    if (!root.key_at(i).get_text(key)) {
      return Error{ErrorCode::kInvalid, "a setting's name must be text", "", 0};
    }
    const Value value = root.value_at(i);
    bool flag = false;
    std::int64_t whole = 0;
    double real = 0;
    std::string_view text;
    if (value.get(flag)) {
      values[std::string(key)] = flag;
    } else if (value.get(whole)) {
      values[std::string(key)] = whole;
    } else if (value.get(real)) {
      values[std::string(key)] = real;
    } else if (value.get_text(text)) {
      values[std::string(key)] = std::string(text);
    } else {
      return Error{ErrorCode::kInvalid, "a setting must be text, a number or true/false",
                   std::string(key), 0};
    }
  }
  return Settings(std::move(values));
}

}  // namespace dray
