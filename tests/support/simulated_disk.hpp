// SimulatedDisk: File and Directory in memory, with what a power cut leaves, and faults on demand.
//
// What was written and not synced may survive a power cut in part: each 512-byte sector of each
// unsynced write by itself, drawn from the seed. Names that were not synced survive or not, each
// by itself.
//
// Threading: one thread. Ownership: the disk outlives its directories and files.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dray/disk/file.hpp"

namespace dray::test {

class SimulatedDisk {
 public:
  explicit SimulatedDisk(std::uint64_t seed) : random_(seed) {}

  std::unique_ptr<Directory> directory();

  // The Nth call from now (1 is the next) that writes, syncs, allocates, truncates, renames or
  // removes fails with this code; so do all after it.
  void fail_at(std::uint64_t call, ErrorCode code) {
    fail_at_ = calls_ + call;
    code_ = code;
  }
  void heal() { fail_at_ = 0; }
  std::uint64_t calls() const { return calls_; }
  // Test of the tests: syncs do nothing.
  void ignore_syncs() { ignore_syncs_ = true; }

  // What is left when the power goes: all open files are dead.
  void cut_power();
  // Flips one bit of a file as it is on the disk.
  void flip_bit(const std::string& name, std::uint64_t offset) {
    names_.at(name)->durable.at(offset) ^= 1;
    names_.at(name)->current.at(offset) ^= 1;
  }
  std::string& bytes(const std::string& name) { return names_.at(name)->current; }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& [name, node] : names_) out.push_back(name);
    return out;
  }

 private:
  friend class SimulatedFile;
  friend class SimulatedDirectory;
  struct Write {
    std::uint64_t offset;
    std::string bytes;
  };
  struct Node {
    std::string current;          // what reads see
    std::string durable;          // what surely survives
    std::vector<Write> unsynced;  // in order
  };

  Status step(const char* operation, const std::string& path) {
    ++calls_;
    if (fail_at_ == 0 || calls_ < fail_at_) return {};
    return Error{code_, std::string(operation) + " failed (injected)", path, 5};
  }

  std::mt19937_64 random_;
  std::map<std::string, std::shared_ptr<Node>> names_;
  std::map<std::string, std::shared_ptr<Node>> durable_names_;
  std::uint64_t calls_ = 0;
  std::uint64_t fail_at_ = 0;
  std::uint64_t generation_ = 0;
  ErrorCode code_ = ErrorCode::kIo;
  bool ignore_syncs_ = false;
  bool locked_ = false;
};

class SimulatedFile final : public File {
 public:
  SimulatedFile(SimulatedDisk& disk, std::shared_ptr<SimulatedDisk::Node> node, std::string path)
      : disk_(disk), node_(std::move(node)), path_(std::move(path)) {}

  Status write_at(std::uint64_t offset, std::string_view bytes) override {
    DRAY_TRY(disk_.step("write", path_));
    if (node_->current.size() < offset + bytes.size()) node_->current.resize(offset + bytes.size());
    std::memcpy(node_->current.data() + offset, bytes.data(), bytes.size());
    node_->unsynced.push_back({offset, std::string(bytes)});
    return {};
  }
  Result<std::size_t> read_at(std::uint64_t offset, char* out, std::size_t size) const override {
    if (offset >= node_->current.size()) return std::size_t{0};
    const std::size_t got = std::min<std::size_t>(size, node_->current.size() - offset);
    std::memcpy(out, node_->current.data() + offset, got);
    return got;
  }
  Status sync_data() override {
    DRAY_TRY(disk_.step("fdatasync", path_));
    if (disk_.ignore_syncs_) return {};
    node_->durable = node_->current;
    node_->unsynced.clear();
    return {};
  }
  Result<std::uint64_t> size() const override { return node_->current.size(); }
  Status truncate(std::uint64_t size) override {
    DRAY_TRY(disk_.step("truncate", path_));
    node_->current.resize(size);
    return {};
  }
  Status allocate(std::uint64_t size) override {
    DRAY_TRY(disk_.step("allocate", path_));
    if (node_->current.size() < size) node_->current.resize(size);
    return {};
  }

 private:
  SimulatedDisk& disk_;
  std::shared_ptr<SimulatedDisk::Node> node_;
  std::string path_;
};

class SimulatedDirectory final : public Directory {
 public:
  explicit SimulatedDirectory(SimulatedDisk& disk) : disk_(disk) {}
  const std::string& path() const override { return path_; }

  Result<std::unique_ptr<File>> open(const std::string& name, OpenMode mode) override {
    const auto found = disk_.names_.find(name);
    if (mode == OpenMode::kCreateNew) {
      if (found != disk_.names_.end()) return Error{ErrorCode::kConflict, "exists", name, 17};
      DRAY_TRY(disk_.step("open", name));
      disk_.names_[name] = std::make_shared<SimulatedDisk::Node>();
    } else if (found == disk_.names_.end()) {
      return Error{ErrorCode::kNotFound, "no such file", name, 2};
    }
    return std::unique_ptr<File>(std::make_unique<SimulatedFile>(disk_, disk_.names_[name], name));
  }
  Result<std::vector<std::string>> list() override { return disk_.names(); }
  Status rename(const std::string& from, const std::string& to) override {
    if (disk_.names_.count(from) == 0) return Error{ErrorCode::kNotFound, "no such file", from, 2};
    DRAY_TRY(disk_.step("rename", from));
    disk_.names_[to] = disk_.names_[from];
    disk_.names_.erase(from);
    return {};
  }
  Status remove(const std::string& name) override {
    if (disk_.names_.count(name) == 0) return Error{ErrorCode::kNotFound, "no such file", name, 2};
    DRAY_TRY(disk_.step("unlink", name));
    disk_.names_.erase(name);
    return {};
  }
  Status sync() override {
    DRAY_TRY(disk_.step("fsync", path_));
    if (!disk_.ignore_syncs_) disk_.durable_names_ = disk_.names_;
    return {};
  }
  Result<std::unique_ptr<DirectoryLock>> lock(const std::string&) override {
    struct Held final : DirectoryLock {
      explicit Held(SimulatedDisk& d) : disk(d) { disk.locked_ = true; }
      ~Held() override { disk.locked_ = false; }
      SimulatedDisk& disk;
    };
    if (disk_.locked_) return Error{ErrorCode::kBusy, "in use", path_, 0};
    return std::unique_ptr<DirectoryLock>(std::make_unique<Held>(disk_));
  }
  std::string volatile_reason() override { return {}; }

 private:
  SimulatedDisk& disk_;
  std::string path_ = "simulated";
};

inline std::unique_ptr<Directory> SimulatedDisk::directory() {
  return std::make_unique<SimulatedDirectory>(*this);
}

inline void SimulatedDisk::cut_power() {
  heal();
  constexpr std::size_t kSector = 512;
  // Each name change that was not synced is on the disk or not.
  auto left = durable_names_;
  for (const auto& [name, node] : names_) {
    if (durable_names_.count(name) == 0 && random_() % 2 == 0) left[name] = node;
  }
  for (const auto& [name, node] : durable_names_) {
    if (names_.count(name) == 0 && random_() % 2 == 0) left.erase(name);
  }
  for (auto& [name, node] : left) {
    std::string bytes = node->durable;
    for (const auto& write : node->unsynced) {
      for (std::size_t at = 0; at < write.bytes.size(); at += kSector) {
        if (random_() % 2 == 0) continue;
        const std::size_t size = std::min(kSector, write.bytes.size() - at);
        if (bytes.size() < write.offset + at + size) bytes.resize(write.offset + at + size);
        std::memcpy(bytes.data() + write.offset + at, write.bytes.data() + at, size);
      }
    }
    auto fresh = std::make_shared<Node>();
    fresh->current = fresh->durable = std::move(bytes);
    node = fresh;
  }
  names_ = durable_names_ = left;
  locked_ = false;
}

}  // namespace dray::test
