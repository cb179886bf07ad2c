// Encoder and Document: MessagePack in and out, behind an interface of our own, so that public
// headers need no third party and every decoder has the same limits.
//
// Format: https://github.com/msgpack/msgpack/blob/master/spec.md. The bytes are made and read by
// msgpack-cxx.
// Threading: one object, one thread. Ownership: a Value and the views it returns point into the
// Document and into the bytes that were parsed; keep both.
// Limits: depth 16 and 1,048,576 values per document; a length is believed only if its bytes are
// there, so five bytes cannot ask for gigabytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "dray/export.hpp"
#include "dray/result.hpp"

namespace dray {

class DRAY_API Encoder {
 public:
  // Appends to `out`, which must outlive the encoder.
  explicit Encoder(std::string& out) : out_(out) {}

  void nil();
  void boolean(bool value);
  void integer(std::int64_t value);
  void natural(std::uint64_t value);
  void real(double value);
  void text(std::string_view value);
  void binary(std::string_view value);
  // `size` values follow (`size` pairs for a map).
  void array(std::size_t size);
  void map(std::size_t size);

 private:
  std::string& out_;
};

class DRAY_API Value {
 public:
  enum class Kind { kNil, kBoolean, kInteger, kReal, kText, kBinary, kArray, kMap, kOther };

  Kind kind() const;
  bool is_nil() const { return kind() == Kind::kNil; }

  // Each returns false, and leaves `out` alone, if the value is of another kind or out of range.
  bool get(bool& out) const;
  bool get(std::int64_t& out) const;
  bool get(std::uint64_t& out) const;
  bool get(double& out) const;
  bool get_text(std::string_view& out) const;
  bool get_binary(std::string_view& out) const;

  // Elements of an array, pairs of a map, 0 for others.
  std::size_t size() const;
  // REQUIRES: kind() == kArray and index < size().
  Value at(std::size_t index) const;
  // REQUIRES: kind() == kMap and index < size().
  Value key_at(std::size_t index) const;
  Value value_at(std::size_t index) const;
  // Value of the text key `name`; false if this is no map or has no such key.
  bool find(std::string_view name, Value& out) const;

 private:
  friend class Document;
  explicit Value(const void* object) : object_(object) {}
  const void* object_;

 public:
  Value() : object_(nullptr) {}
};

// Name of a kind as in an error message: "text", "a map".
DRAY_API std::string_view kind_name(Value::Kind kind);

class DRAY_API Document {
 public:
  // Parses one value that fills `bytes` to the end.
  static Result<Document> parse(std::string_view bytes);
  ~Document();
  Document(Document&&) noexcept;
  Document& operator=(Document&&) noexcept;

  Value root() const;

 private:
  struct State;
  explicit Document(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dray
