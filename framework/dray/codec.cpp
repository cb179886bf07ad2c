#include "dray/codec.hpp"

#include <limits>
#include <msgpack.hpp>

#include "dray/msgpack_limits.hpp"

namespace dray {
namespace {

// msgpack::packer wants a stream with write(); this one appends to a string.
struct StringSink {
  std::string& out;
  void write(const char* data, std::size_t size) { out.append(data, size); }
};

std::uint32_t checked_length(std::size_t size) {
  DRAY_ASSERT(size <= std::numeric_limits<std::uint32_t>::max());
  return static_cast<std::uint32_t>(size);
}

template <typename Write>
void pack_into(std::string& out, Write write) {
  StringSink sink{out};
  msgpack::packer<StringSink> packer(sink);
  write(packer);
}

const msgpack::object& object_of(const void* pointer) {
  return *static_cast<const msgpack::object*>(pointer);
}

}  // namespace

void Encoder::nil() {
  pack_into(out_, [](auto& p) { p.pack_nil(); });
}
void Encoder::boolean(bool value) {
  pack_into(out_, [&](auto& p) { value ? p.pack_true() : p.pack_false(); });
}
void Encoder::integer(std::int64_t value) {
  pack_into(out_, [&](auto& p) { p.pack_int64(value); });
}
void Encoder::natural(std::uint64_t value) {
  pack_into(out_, [&](auto& p) { p.pack_uint64(value); });
}
void Encoder::real(double value) {
  pack_into(out_, [&](auto& p) { p.pack_double(value); });
}
void Encoder::text(std::string_view value) {
  pack_into(out_, [&](auto& p) {
    const auto size = checked_length(value.size());
    p.pack_str(size);
    p.pack_str_body(value.data(), size);
  });
}
void Encoder::binary(std::string_view value) {
  pack_into(out_, [&](auto& p) {
    const auto size = checked_length(value.size());
    p.pack_bin(size);
    p.pack_bin_body(value.data(), size);
  });
}
void Encoder::array(std::size_t size) {
  pack_into(out_, [&](auto& p) { p.pack_array(checked_length(size)); });
}
void Encoder::map(std::size_t size) {
  pack_into(out_, [&](auto& p) { p.pack_map(checked_length(size)); });
}

Value::Kind Value::kind() const {
  if (object_ == nullptr) return Kind::kNil;
  switch (object_of(object_).type) {
    case msgpack::type::NIL:
      return Kind::kNil;
    case msgpack::type::BOOLEAN:
      return Kind::kBoolean;
    case msgpack::type::POSITIVE_INTEGER:
    case msgpack::type::NEGATIVE_INTEGER:
      return Kind::kInteger;
    case msgpack::type::FLOAT32:
    case msgpack::type::FLOAT64:
      return Kind::kReal;
    case msgpack::type::STR:
      return Kind::kText;
    case msgpack::type::BIN:
      return Kind::kBinary;
    case msgpack::type::ARRAY:
      return Kind::kArray;
    case msgpack::type::MAP:
      return Kind::kMap;
    case msgpack::type::EXT:
      return Kind::kOther;
  }
  return Kind::kOther;
}

bool Value::get(bool& out) const {
  if (kind() != Kind::kBoolean) return false;
  out = object_of(object_).via.boolean;
  return true;
}

bool Value::get(std::int64_t& out) const {
  if (kind() != Kind::kInteger) return false;
  const auto& object = object_of(object_);
  if (object.type == msgpack::type::NEGATIVE_INTEGER) {
    out = object.via.i64;
    return true;
  }
  if (object.via.u64 > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return false;
  }
  out = static_cast<std::int64_t>(object.via.u64);
  return true;
}

bool Value::get(std::uint64_t& out) const {
  if (kind() != Kind::kInteger) return false;
  const auto& object = object_of(object_);
  if (object.type == msgpack::type::NEGATIVE_INTEGER) return false;
  out = object.via.u64;
  return true;
}

bool Value::get(double& out) const {
  if (kind() == Kind::kReal) {
    out = object_of(object_).via.f64;
    return true;
  }
  std::int64_t whole = 0;
  if (!get(whole)) return false;
  out = static_cast<double>(whole);
  return true;
}

bool Value::get_text(std::string_view& out) const {
  if (kind() != Kind::kText) return false;
  out = {object_of(object_).via.str.ptr, object_of(object_).via.str.size};
  return true;
}

bool Value::get_binary(std::string_view& out) const {
  if (kind() != Kind::kBinary) return false;
  out = {object_of(object_).via.bin.ptr, object_of(object_).via.bin.size};
  return true;
}

std::size_t Value::size() const {
  if (kind() == Kind::kArray) return object_of(object_).via.array.size;
  if (kind() == Kind::kMap) return object_of(object_).via.map.size;
  return 0;
}

Value Value::at(std::size_t index) const {
  DRAY_ASSERT(kind() == Kind::kArray && index < size());
  return Value(&object_of(object_).via.array.ptr[index]);
}

Value Value::key_at(std::size_t index) const {
  DRAY_ASSERT(kind() == Kind::kMap && index < size());
  return Value(&object_of(object_).via.map.ptr[index].key);
}

Value Value::value_at(std::size_t index) const {
  DRAY_ASSERT(kind() == Kind::kMap && index < size());
  return Value(&object_of(object_).via.map.ptr[index].val);
}

bool Value::find(std::string_view name, Value& out) const {
  if (kind() != Kind::kMap) return false;
  for (std::size_t i = 0; i < size(); ++i) {
    std::string_view key;
    if (key_at(i).get_text(key) && key == name) {
      out = value_at(i);
      return true;
    }
  }
  return false;
}

std::string_view kind_name(Value::Kind kind) {
  switch (kind) {
    case Value::Kind::kNil:
      return "nil";
    case Value::Kind::kBoolean:
      return "a boolean";
    case Value::Kind::kInteger:
      return "an integer";
    case Value::Kind::kReal:
      return "a real number";
    case Value::Kind::kText:
      return "text";
    case Value::Kind::kBinary:
      return "binary";
    case Value::Kind::kArray:
      return "an array";
    case Value::Kind::kMap:
      return "a map";
    case Value::Kind::kOther:
      return "an extension type";
  }
  return "unknown";
}

struct Document::State {
  msgpack::object_handle handle;
};

Document::Document(std::unique_ptr<State> state) : state_(std::move(state)) {}
Document::~Document() = default;
Document::Document(Document&&) noexcept = default;
Document& Document::operator=(Document&&) noexcept = default;

Value Document::root() const {
  return Value(&state_->handle.get());
}

Result<Document> Document::parse(std::string_view bytes) {
  // Two passes: the first allocates nothing and proves that every announced element is there, so
  // the second cannot be made to allocate more than a small multiple of what was received.
  LimitVisitor limits;
  std::size_t offset = 0;
  if (!msgpack::parse(bytes.data(), bytes.size(), offset, limits) || offset != bytes.size()) {
    return Error{ErrorCode::kCorrupt, limits.reason_or("not one whole MessagePack value"), "", 0};
  }
  auto state = std::make_unique<State>();
  const auto reference_all = [](msgpack::type::object_type, std::size_t, void*) { return true; };
  try {
    offset = 0;
    msgpack::unpack(state->handle, bytes.data(), bytes.size(), offset, reference_all);
  } catch (const std::exception& failure) {
    return Error{ErrorCode::kCorrupt, std::string("not MessagePack: ") + failure.what(), "", 0};
  }
  return Document(std::move(state));
}

}  // namespace dray
