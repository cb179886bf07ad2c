// SimulatedDisk: File and Directory in memory, with what a power cut leaves, and faults on demand.
//
// What was written and not synced may survive a power cut in part and in any order: each 512-byte
// sector of each unsynced write by itself, drawn from the seed. Names that were made, renamed or
// removed and not synced are there or not, each by itself; a rename happens whole or not at all. A
// sync that fails loses a part of what it should have written and, as Linux does, calls it clean:
// reads still see it, later syncs do not write it.
//
// Threading: one thread. Ownership: the disk outlives its directories and files.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "dray/disk/file.hpp"

namespace dray::testing {

class SimulatedDisk {
 public:
  static constexpr std::size_t kSector = 512;
  static constexpr std::size_t kPage = 4096;

  explicit SimulatedDisk(std::uint64_t seed) : random_(seed) {}

  std::unique_ptr<Directory> directory();

  // The Nth call from now (1 is the next) that writes, syncs, allocates, truncates, renames,
  // creates or removes fails with this code; so do all after it until heal(), unless `once`.
  void fail_at(std::uint64_t call, ErrorCode code, bool once = false) {
    fail_at_ = calls_ + call;
    code_ = code;
    once_ = once;
  }
  void heal() { fail_at_ = 0; }
  std::uint64_t calls() const { return calls_; }
  // Files have room for so many bytes in all, in whole pages; 0: no limit.
  void limit_room(std::uint64_t bytes) { room_ = bytes; }
  // Test of the tests: syncs do nothing.
  void ignore_syncs() { ignore_syncs_ = true; }
  // Why it keeps nothing; empty: it does.
  void set_volatile(std::string reason) { volatile_reason_ = std::move(reason); }
  // What tells this folder from a copy of it.
  void move_to(std::uint64_t identity) { identity_ = identity; }
  // Reads that touch this byte fail with EIO.
  void break_sector(const std::string& name, std::uint64_t offset) {
    names_.at(name)->bad_sectors.insert(offset / kSector);
  }

  // What is left when the power goes: all open files are dead.
  void cut_power();
  // What is left when the process is killed: everything that was written.
  void kill() {
    heal();
    locked_ = false;
  }
  // Flips one bit of a file as it is on the disk.
  void flip_bit(const std::string& name, std::uint64_t offset) {
    auto& node = *names_.at(name);
    if (offset < node.durable.size()) node.durable[offset] ^= 1;
    node.current.at(offset) ^= 1;
  }
  // The same of whole stretches.
  void overwrite(const std::string& name, std::uint64_t offset, std::string_view bytes) {
    auto& node = *names_.at(name);
    for (auto* content : {&node.durable, &node.current}) {
      if (content->size() < offset + bytes.size()) content->resize(offset + bytes.size());
      content->replace(offset, bytes.size(), bytes);
    }
  }
  // All can be read again.
  void mend_sectors() {
    for (auto& [name, node] : names_) node->bad_sectors.clear();
  }
  std::string& bytes(const std::string& name) { return names_.at(name)->current; }
  void erase(const std::string& name) {
    names_.erase(name);
    durable_names_.erase(name);
  }
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
    std::set<std::uint64_t> bad_sectors;

    void make_durable(const Write& write) {
      const std::size_t end = write.offset + write.bytes.size();
      if (durable.size() < end) durable.resize(end);
      std::memcpy(durable.data() + write.offset, write.bytes.data(), write.bytes.size());
    }
    // What was written before to the same place can only come to the disk as it is now.
    void overlay() {
      const auto& last = unsynced.back();
      for (std::size_t i = 0; i + 1 < unsynced.size(); ++i) {
        auto& older = unsynced[i];
        const auto begin = std::max(older.offset, last.offset);
        const auto end =
            std::min(older.offset + older.bytes.size(), last.offset + last.bytes.size());
        if (begin >= end) continue;
        std::memcpy(older.bytes.data() + (begin - older.offset),
                    last.bytes.data() + (begin - last.offset), end - begin);
      }
    }
    void sync() {
      for (const auto& write : unsynced) make_durable(write);
      durable.resize(current.size());
      unsynced.clear();
    }
  };

  // A name that was made (from is empty), renamed, or removed (to is empty).
  struct NameChange {
    std::string from;
    std::string to;
    std::shared_ptr<Node> node;
  };

  static std::uint64_t in_pages(std::uint64_t size) { return (size + kPage - 1) / kPage * kPage; }
  // kFull if a file has no room to become so large.
  Status make_room(const Node& node, std::uint64_t size, const std::string& path) const {
    if (room_ == 0 || in_pages(size) <= in_pages(node.current.size())) return {};
    std::uint64_t used = in_pages(size) - in_pages(node.current.size());
    for (const auto& [name, each] : names_) used += in_pages(each->current.size());
    if (used <= room_) return {};
    return Error{ErrorCode::kFull, "the disk is full", path, 28};
  }
  bool coin() { return (random_() & 1) != 0; }
  Status step(const char* operation, const std::string& path, std::uint64_t offset = 0,
              std::size_t size = 0) {
    ++calls_;
    const bool good = fail_at_ == 0 || calls_ < fail_at_ || (once_ && calls_ > fail_at_);
    if (trace_) {
      std::fprintf(stderr, "  %6llu %-14s %s %llu+%zu%s\n", static_cast<unsigned long long>(calls_),
                   operation, path.c_str(), static_cast<unsigned long long>(offset), size,
                   good ? "" : " FAILS");
    }
    if (good) return {};
    return Error{code_, std::string(operation) + " failed (injected)", path, 5};
  }
  // Some of it reaches the disk, some is lost; none of it is dirty any more.
  void lose_dirty(Node& node) {
    for (const auto& write : node.unsynced) {
      if (coin()) node.make_durable(write);
    }
    node.unsynced.clear();
  }

  std::mt19937_64 random_;
  std::map<std::string, std::shared_ptr<Node>> names_;
  std::map<std::string, std::shared_ptr<Node>> durable_names_;
  std::vector<NameChange> unsynced_names_;
  std::uint64_t calls_ = 0;
  std::uint64_t fail_at_ = 0;
  std::uint64_t identity_ = 1;
  ErrorCode code_ = ErrorCode::kIo;
  std::uint64_t room_ = 0;
  std::string volatile_reason_;
  bool once_ = false;
  bool ignore_syncs_ = false;
  bool locked_ = false;
  const bool trace_ = std::getenv("DRAY_TEST_TRACE") != nullptr;  // every call, for one seed
};

class SimulatedFile final : public File {
 public:
  SimulatedFile(SimulatedDisk& disk, std::shared_ptr<SimulatedDisk::Node> node, std::string path)
      : disk_(disk), node_(std::move(node)), path_(std::move(path)) {}

  Status write_at(std::uint64_t offset, std::string_view bytes) override {
    DRAY_TRY(disk_.make_room(*node_, offset + bytes.size(), path_));
    Status step = disk_.step("write", path_, offset, bytes.size());
    if (!step.ok()) {  // a part of it may have been written
      put(offset, bytes.substr(0, disk_.random_() % (bytes.size() + 1)));
      return step;
    }
    put(offset, bytes);
    return {};
  }
  Status write_durable_at(std::uint64_t offset, std::string_view bytes,
                          const WriteHints&) override {
    DRAY_TRY(disk_.make_room(*node_, offset + bytes.size(), path_));
    Status step = disk_.step("write and sync", path_, offset, bytes.size());
    if (!step.ok()) {
      put(offset, bytes.substr(0, disk_.random_() % (bytes.size() + 1)));
      if (step.error().code == ErrorCode::kIo) disk_.lose_dirty(*node_);
      return step;
    }
    put(offset, bytes);
    if (disk_.ignore_syncs_) return {};
    node_->make_durable(node_->unsynced.back());
    node_->overlay();
    node_->unsynced.pop_back();
    return {};
  }
  Result<bool> write_ahead_at(std::uint64_t offset, std::string_view bytes, std::size_t) override {
    DRAY_TRY(write_at(offset, bytes));
    return true;
  }
  Result<std::size_t> read_at(std::uint64_t offset, char* out, std::size_t size) const override {
    if (offset >= node_->current.size()) return std::size_t{0};
    const std::size_t got = std::min<std::size_t>(size, node_->current.size() - offset);
    const auto bad = node_->bad_sectors.lower_bound(offset / SimulatedDisk::kSector);
    if (bad != node_->bad_sectors.end() && *bad * SimulatedDisk::kSector < offset + got) {
      return Error{ErrorCode::kIo, "read failed (bad sector)", path_, 5};
    }
    std::copy_n(node_->current.data() + offset, got, out);
    return got;
  }
  Status sync_data() override {
    Status step = disk_.step("fdatasync", path_);
    if (!step.ok()) {
      disk_.lose_dirty(*node_);
      return step;
    }
    if (!disk_.ignore_syncs_) node_->sync();
    return {};
  }
  Result<std::uint64_t> size() const override { return node_->current.size(); }
  Status truncate(std::uint64_t size) override {
    DRAY_TRY(disk_.step("truncate", path_));
    node_->current.resize(size);
    return {};
  }
  Status allocate(std::uint64_t size) override {
    DRAY_TRY(disk_.make_room(*node_, size, path_));
    DRAY_TRY(disk_.step("allocate", path_));
    if (node_->current.size() < size) node_->current.resize(size);
    return {};
  }

 private:
  void put(std::uint64_t offset, std::string_view bytes) {
    if (node_->current.size() < offset + bytes.size()) node_->current.resize(offset + bytes.size());
    std::memcpy(node_->current.data() + offset, bytes.data(), bytes.size());
    // A disk gives a sector that is written anew another place; file systems write whole pages.
    const auto first = offset / SimulatedDisk::kPage * SimulatedDisk::kPage;
    const auto last = offset + bytes.size() + SimulatedDisk::kPage - 1;
    node_->bad_sectors.erase(
        node_->bad_sectors.lower_bound(first / SimulatedDisk::kSector),
        node_->bad_sectors.lower_bound(last / SimulatedDisk::kPage * SimulatedDisk::kPage /
                                       SimulatedDisk::kSector));
    node_->unsynced.push_back({offset, std::string(bytes)});
  }

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
      disk_.unsynced_names_.push_back({"", name, disk_.names_[name]});
    } else if (found == disk_.names_.end()) {
      return Error{ErrorCode::kNotFound, "no such file", name, 2};
    }
    return std::unique_ptr<File>(std::make_unique<SimulatedFile>(disk_, disk_.names_[name], name));
  }
  Result<std::vector<std::string>> list() override { return disk_.names(); }
  Status rename(const std::string& from, const std::string& to) override {
    if (disk_.names_.count(from) == 0) return Error{ErrorCode::kNotFound, "no such file", from, 2};
    DRAY_TRY(disk_.step("rename", from + " to " + to));
    disk_.names_[to] = disk_.names_[from];
    disk_.names_.erase(from);
    disk_.unsynced_names_.push_back({from, to, disk_.names_[to]});
    return {};
  }
  Status remove(const std::string& name) override {
    if (disk_.names_.count(name) == 0) return Error{ErrorCode::kNotFound, "no such file", name, 2};
    DRAY_TRY(disk_.step("unlink", name));
    disk_.unsynced_names_.push_back({name, "", disk_.names_[name]});
    disk_.names_.erase(name);
    return {};
  }
  Status sync() override {
    DRAY_TRY(disk_.step("fsync", path_));
    if (disk_.ignore_syncs_) return {};
    disk_.durable_names_ = disk_.names_;
    disk_.unsynced_names_.clear();
    return {};
  }
  std::uint64_t identity() override { return disk_.identity_; }
  Result<std::unique_ptr<DirectoryLock>> lock(const std::string&) override {
    struct Held final : DirectoryLock {
      explicit Held(SimulatedDisk& d) : disk(d) { disk.locked_ = true; }
      ~Held() override { disk.locked_ = false; }
      SimulatedDisk& disk;
    };
    if (disk_.locked_) return Error{ErrorCode::kBusy, "in use", path_, 0};
    return std::unique_ptr<DirectoryLock>(std::make_unique<Held>(disk_));
  }
  bool is_locked(const std::string&) override { return disk_.locked_; }
  std::string volatile_reason() override { return disk_.volatile_reason_; }

 private:
  SimulatedDisk& disk_;
  std::string path_ = "simulated";
};

inline std::unique_ptr<Directory> SimulatedDisk::directory() {
  return std::make_unique<SimulatedDirectory>(*this);
}

inline void SimulatedDisk::cut_power() {
  heal();
  auto left = durable_names_;
  for (const auto& change : unsynced_names_) {
    if (coin()) continue;
    const auto old = left.find(change.from);
    if (old != left.end() && old->second == change.node) left.erase(old);
    if (!change.to.empty()) left[change.to] = change.node;
  }
  unsynced_names_.clear();
  std::map<Node*, std::shared_ptr<Node>> survivors;  // a file may be left under two names
  for (auto& [name, node] : left) {
    auto& fresh = survivors[node.get()];
    if (fresh == nullptr) {
      fresh = std::make_shared<Node>();
      std::string bytes = node->durable;
      for (const auto& write : node->unsynced) {
        for (std::size_t at = 0; at < write.bytes.size(); at += kSector) {
          if (coin()) continue;
          const std::size_t size = std::min(kSector, write.bytes.size() - at);
          if (bytes.size() < write.offset + at + size) bytes.resize(write.offset + at + size);
          std::memcpy(bytes.data() + write.offset + at, write.bytes.data() + at, size);
        }
      }
      fresh->current = bytes;
      fresh->durable = std::move(bytes);
      fresh->bad_sectors = node->bad_sectors;
    }
    node = fresh;
  }
  names_ = durable_names_ = left;
  locked_ = false;
}

}  // namespace dray::testing
