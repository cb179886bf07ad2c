// limits: what this machine can do for a program that does nothing else. No Dray code.
//
//   limits append    --messages N --size B --batch N --dir D [--no-sync]
//   limits composite --messages N --size B --window N --dir D [--no-sync]
//
//   --file recycled (default) | extending | fallocated: what is written into
//
// append: one loop that writes batches to a file and syncs each.
//
// composite: the way of a message in a durable queue, and nothing else. Two processes. One thread
// publishes: it frames each message (length, CRC-32C, sequence, id, body) into the open batch,
// while fewer than the window wait for their receipts. One thread writes and syncs what there is as
// one batch, at most 1,024, and gives each its receipt. One thread ships the same bytes over
// ROUTER/DEALER as one frame. The other process calls a handler for each message and answers each
// frame with its range. The range is written with the next batch; when it is synced, the messages
// are settled. One JSON line each.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Options {
  std::string mode;
  unsigned long messages = 500'000;
  unsigned long size = 256;
  unsigned long batch = 1'024;
  unsigned long window = 1'000;
  std::string directory = ".";
  bool sync = true;
  std::string file = "recycled";
};

constexpr unsigned long kBatchMax = 1'024;
constexpr off_t kFileSize = 256L << 20;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double cpu_seconds(int who) {
  rusage usage{};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// A file that is written round and round if its blocks are there already, as recycled segments are;
// else one after the other.
class BareLog {
 public:
  BareLog(const std::string& directory, bool sync, const std::string& file)
      : path_(directory + "/limits.bin"), sync_(sync), file_(file) {
    start();
  }
  ~BareLog() {
    close(fd_);
    unlink(path_.c_str());
  }
  BareLog(const BareLog&) = delete;
  BareLog& operator=(const BareLog&) = delete;

  void append(const char* data, std::size_t size) {
    if (at_ + static_cast<off_t>(size) > kFileSize) {
      at_ = 0;
      if (file_ != "recycled") {
        close(fd_);
        start();
      }
    }
    if (pwrite(fd_, data, size, at_) != static_cast<ssize_t>(size)) die("write");
    if (sync_ && fdatasync(fd_) != 0) die("fdatasync");
    at_ += static_cast<off_t>(size);
  }

 private:
  void start() {
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd_ < 0) die("open");
    if (file_ == "fallocated" && posix_fallocate(fd_, 0, kFileSize) != 0) die("fallocate");
    const std::vector<char> zeros(1 << 20, 0);
    for (off_t at = 0; file_ == "recycled" && at < kFileSize;
         at += static_cast<off_t>(zeros.size())) {
      if (pwrite(fd_, zeros.data(), zeros.size(), at) < 0) die("write");
    }
    if (fsync(fd_) != 0) die("fsync");
  }

  std::string path_;
  bool sync_;
  std::string file_;
  int fd_ = -1;
  off_t at_ = 0;
};

void report(const Options& options, double seconds, std::vector<double> latencies_us, double cpu) {
  std::sort(latencies_us.begin(), latencies_us.end());
  const auto percentile = [&](double p) {
    return latencies_us.empty() ? 0.0
                                : latencies_us[static_cast<std::size_t>(
                                      p * static_cast<double>(latencies_us.size() - 1))];
  };
  const auto count = static_cast<double>(options.messages);
  std::printf(
      "{\"workload\": \"limits-%s\", \"messages\": %lu, \"size\": %lu, "
      "\"messages_per_second\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
      "\"cpu_seconds_per_million\": %.3f}\n",
      options.mode.c_str(), options.messages, options.size, count / seconds, percentile(0.5),
      percentile(0.99), cpu * 1e6 / count);
}

void append(const Options& options) {
  BareLog log(options.directory, options.sync, options.file);
  const std::vector<char> bytes(options.size * options.batch, 'x');
  std::vector<double> latencies;
  const double cpu = cpu_seconds(RUSAGE_SELF);
  const double started = now_seconds();
  for (unsigned long i = 0; i < options.messages; i += options.batch) {
    const double before = now_seconds();
    log.append(bytes.data(), bytes.size());
    latencies.push_back((now_seconds() - before) * 1e6);
  }
  report(options, now_seconds() - started, std::move(latencies), cpu_seconds(RUSAGE_SELF) - cpu);
}

struct Record {
  std::uint32_t length = 0;  // of the body
  std::uint32_t crc = 0;     // of sequence, id and body
  std::uint64_t sequence = 0;
  std::uint64_t id[2] = {};
};
struct Range {
  std::uint64_t first = 0, count = 0;
};

#if defined(__x86_64__)
__attribute__((target("sse4.2")))
#endif
std::uint32_t
checksum(const char* data, std::size_t size) {
#if defined(__x86_64__)
  std::uint64_t crc = 0;
  for (; size >= 8; size -= 8, data += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  for (; size > 0; --size, ++data) {
    crc = _mm_crc32_u8(static_cast<std::uint32_t>(crc), static_cast<unsigned char>(*data));
  }
  return static_cast<std::uint32_t>(crc);
#else
  std::uint32_t crc = 0;
  for (; size > 0; --size, ++data) crc = crc * 31 + static_cast<unsigned char>(*data);
  return crc;
#endif
}

__attribute__((noinline)) void handle(const char* body, std::size_t size) {
  asm volatile("" : : "r"(body), "r"(size) : "memory");
}

void run_worker(const std::string& endpoint) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  void* context = zmq_ctx_new();
  void* dealer = zmq_socket(context, ZMQ_DEALER);
  if (zmq_connect(dealer, endpoint.c_str()) != 0) die("connect");
  zmq_send(dealer, "hello", 5, 0);
  zmq_msg_t message;
  zmq_msg_init(&message);
  for (;;) {
    if (zmq_msg_recv(&message, dealer, 0) < 0) continue;
    const char* at = static_cast<const char*>(zmq_msg_data(&message));
    const char* const end = at + zmq_msg_size(&message);
    if (at == end) _exit(0);
    Range range;
    while (at < end) {
      Record record;
      std::memcpy(&record, at, sizeof(record));
      handle(at + sizeof(record), record.length);
      at += sizeof(record) + record.length;
      if (range.count++ == 0) range.first = record.sequence;
    }
    zmq_send(dealer, &range, sizeof(range), 0);
  }
}

struct Batch {
  std::vector<char> bytes;
  unsigned long count = 0;
  std::vector<Range> settled;  // written behind the messages, not shipped
};

// The first of the two processes. The committer is the calling thread.
class Producer {
 public:
  Producer(const Options& options, void* router, std::string peer)
      : options_(options),
        router_(router),
        peer_(std::move(peer)),
        log_(options.directory, options.sync, options.file) {}

  double run() {
    const double started = now_seconds();
    std::thread publisher([&] { publish(); });
    std::thread dispatcher([&] { dispatch(); });
    commit();
    const double took = now_seconds() - started;
    publisher.join();
    dispatcher.join();
    return took;
  }
  std::vector<double> latencies_us;

 private:
  void publish() {
    const std::vector<char> body(options_.size, 'x');
    for (unsigned long i = 0; i < options_.messages; ++i) {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [&] { return outstanding_ < options_.window; });
      if (queue_.empty() || queue_.back()->count == kBatchMax) {
        queue_.push_back(spare_.empty() ? std::make_unique<Batch>() : std::move(spare_.back()));
        if (!spare_.empty()) spare_.pop_back();
        queue_.back()->bytes.clear();
        queue_.back()->count = 0;
      }
      Batch& batch = *queue_.back();
      Record record{static_cast<std::uint32_t>(body.size()), 0, i, {i * 0x9E3779B97F4A7C15, ~i}};
      const std::size_t at = batch.bytes.size();
      batch.bytes.resize(at + sizeof(record) + body.size());
      char* out = batch.bytes.data() + at;
      std::memcpy(out + sizeof(record), body.data(), body.size());
      std::memcpy(out, &record, sizeof(record));
      record.crc = checksum(out + 8, sizeof(record) - 8 + body.size());
      std::memcpy(out, &record, sizeof(record));
      ++batch.count;
      if (outstanding_++ == 0 || batch.count == 1) work_.notify_one();
    }
  }

  void commit() {
    for (unsigned long settled = 0; settled < options_.messages;) {
      std::shared_ptr<Batch> batch;
      std::vector<Range> answers;
      {
        std::unique_lock lock(mutex_);
        work_.wait(lock, [&] { return !queue_.empty() || !answers_.empty(); });
        answers.swap(answers_);
        if (!queue_.empty()) {
          batch = std::shared_ptr<Batch>(queue_.front().release(), [this](Batch* done) {
            const std::lock_guard guard(mutex_);
            spare_.emplace_back(done);
          });
          queue_.pop_front();
        }
      }
      const double before = now_seconds();
      const std::size_t shipped = batch ? batch->bytes.size() : 0;
      if (!batch) {
        log_.append(reinterpret_cast<const char*>(answers.data()), answers.size() * sizeof(Range));
      } else {
        const char* first = reinterpret_cast<const char*>(answers.data());
        batch->bytes.insert(batch->bytes.end(), first, first + answers.size() * sizeof(Range));
        log_.append(batch->bytes.data(), batch->bytes.size());
        batch->bytes.resize(shipped);
      }
      latencies_us.push_back((now_seconds() - before) * 1e6);
      for (const auto& answer : answers) settled += answer.count;
      if (!batch) continue;
      const std::lock_guard lock(mutex_);
      const bool waits = outstanding_ >= options_.window;
      for (unsigned long i = 0; i < batch->count; ++i) --outstanding_;  // each has its receipt
      if (waits) room_.notify_one();
      ship_.push_back(std::move(batch));
      if (ship_.size() == 1) wake_dispatcher();
    }
    const std::lock_guard lock(mutex_);
    done_ = true;
    wake_dispatcher();
  }

  void wake_dispatcher() {
    const std::uint64_t one = 1;
    if (write(event_, &one, sizeof(one)) < 0) die("eventfd");
  }

  void dispatch() {
    for (;;) {
      zmq_pollitem_t items[] = {{router_, 0, ZMQ_POLLIN, 0}, {nullptr, event_, ZMQ_POLLIN, 0}};
      zmq_poll(items, 2, -1);
      std::vector<std::shared_ptr<Batch>> batches;
      if ((items[1].revents & ZMQ_POLLIN) != 0) {
        std::uint64_t ignored = 0;
        if (read(event_, &ignored, sizeof(ignored)) < 0) die("eventfd");
        const std::lock_guard lock(mutex_);
        if (done_) return;
        batches.swap(ship_);
      }
      for (auto& batch : batches) {
        zmq_send(router_, peer_.data(), peer_.size(), ZMQ_SNDMORE);
        zmq_msg_t message;
        auto* kept = new std::shared_ptr<Batch>(std::move(batch));
        zmq_msg_init_data(
            &message, (*kept)->bytes.data(), (*kept)->bytes.size(),
            [](void*, void* hint) { delete static_cast<std::shared_ptr<Batch>*>(hint); }, kept);
        zmq_msg_send(&message, router_, 0);
      }
      char ignored[64];
      Range range;
      while (zmq_recv(router_, ignored, sizeof(ignored), ZMQ_DONTWAIT) >= 0) {
        if (zmq_recv(router_, &range, sizeof(range), 0) < 0) die("recv");
        const std::lock_guard lock(mutex_);
        answers_.push_back(range);
        if (queue_.empty()) work_.notify_one();
      }
    }
  }

  const Options& options_;
  void* router_;
  const std::string peer_;
  BareLog log_;
  const int event_ = eventfd(0, EFD_CLOEXEC);

  std::mutex mutex_;
  std::condition_variable work_, room_;
  std::deque<std::unique_ptr<Batch>> queue_;
  std::vector<std::unique_ptr<Batch>> spare_;
  std::vector<std::shared_ptr<Batch>> ship_;
  std::vector<Range> answers_;
  unsigned long outstanding_ = 0;
  bool done_ = false;
};

void composite(const Options& options) {
  const std::string endpoint = "ipc://" + options.directory + "/limits.sock";
  const pid_t worker = fork();
  if (worker == 0) run_worker(endpoint);
  void* context = zmq_ctx_new();
  void* router = zmq_socket(context, ZMQ_ROUTER);
  if (zmq_bind(router, endpoint.c_str()) != 0) die("bind");
  char peer[64];
  char hello[16];
  const int peer_size = zmq_recv(router, peer, sizeof(peer), 0);
  if (peer_size < 0 || zmq_recv(router, hello, sizeof(hello), 0) < 0) die("recv");
  Producer producer(options, router, {peer, static_cast<std::size_t>(peer_size)});
  const double cpu = cpu_seconds(RUSAGE_SELF);
  const double took = producer.run();
  const double own = cpu_seconds(RUSAGE_SELF) - cpu;
  zmq_send(router, peer, static_cast<std::size_t>(peer_size), ZMQ_SNDMORE);
  zmq_send(router, "", 0, 0);
  waitpid(worker, nullptr, 0);
  report(options, took, std::move(producer.latencies_us), own + cpu_seconds(RUSAGE_CHILDREN));
  unlink((options.directory + "/limits.sock").c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (argc > 1) options.mode = argv[1];
  for (int i = 2; i < argc; ++i) {
    const std::string name = argv[i];
    const auto number = [&](unsigned long& out) {
      if (++i < argc) out = std::strtoul(argv[i], nullptr, 10);
    };
    if (name == "--messages") number(options.messages);
    if (name == "--size") number(options.size);
    if (name == "--batch") number(options.batch);
    if (name == "--window") number(options.window);
    if (name == "--dir" && ++i < argc) options.directory = argv[i];
    if (name == "--file" && ++i < argc) options.file = argv[i];
    if (name == "--no-sync") options.sync = false;
  }
  if (options.mode == "append") {
    append(options);
  } else if (options.mode == "composite") {
    composite(options);
  } else {
    std::fprintf(stderr, "usage: limits append|composite --messages N --size B --dir D\n");
    return 2;
  }
}
