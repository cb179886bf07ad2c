// limits: what this machine can do for a program that does nothing else. No Dray code.
//
//   limits append    --messages N --size B --batch N --dir D [--no-sync]
//   limits composite --messages N --size B --window N --dir D [--no-sync]
//
//   --file recycled (default) | extending | fallocated: what is written into
//
// append: one loop that writes batches to a file and syncs each. composite: two
// processes; the first takes what is outstanding (at most the window), writes and syncs it as one
// batch, ships the batch over ROUTER/DEALER as one frame; the second answers each frame with its
// count. One JSON line each.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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
    unsigned long count = 0;
    std::memcpy(&count, zmq_msg_data(&message), sizeof(count));
    zmq_send(dealer, &count, sizeof(count), 0);
    if (count == 0) _exit(0);
  }
}

void composite(const Options& options) {
  const std::string endpoint = "ipc://" + options.directory + "/limits.sock";
  const pid_t worker = fork();
  if (worker == 0) run_worker(endpoint);
  BareLog log(options.directory, options.sync, options.file);
  void* context = zmq_ctx_new();
  void* router = zmq_socket(context, ZMQ_ROUTER);
  if (zmq_bind(router, endpoint.c_str()) != 0) die("bind");
  char peer[64];
  char hello[16];
  const int peer_size = zmq_recv(router, peer, sizeof(peer), 0);
  if (peer_size < 0 || zmq_recv(router, hello, sizeof(hello), 0) < 0) die("recv");

  // One thread hands in messages while fewer than the window wait for their sync.
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<char> pending;
  unsigned long pending_count = 0;
  unsigned long outstanding = 0;
  const double cpu = cpu_seconds(RUSAGE_SELF);
  const double started = now_seconds();
  std::thread producer([&] {
    const std::vector<char> body(options.size, 'x');
    for (unsigned long i = 0; i < options.messages; ++i) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return outstanding < options.window; });
      pending.insert(pending.end(), body.begin(), body.end());
      ++pending_count;
      ++outstanding;
      if (pending_count == 1) changed.notify_all();
    }
  });
  unsigned long shipped = 0;
  unsigned long answered = 0;
  std::vector<char> batch;
  const auto take_answers = [&](int flags) {
    char ignored[64];
    unsigned long count = 0;
    while (zmq_recv(router, ignored, sizeof(ignored), flags) >= 0) {
      if (zmq_recv(router, &count, sizeof(count), 0) < 0) die("recv");
      answered += count;
      if (answered >= options.messages) return;
    }
  };
  while (shipped < options.messages) {
    unsigned long count = 0;
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return pending_count > 0; });
      count = std::min(pending_count, kBatchMax);
      const auto end = pending.begin() + static_cast<std::ptrdiff_t>(count * options.size);
      batch.assign(sizeof(count), 0);
      batch.insert(batch.end(), pending.begin(), end);
      pending.erase(pending.begin(), end);
      pending_count -= count;
    }
    std::memcpy(batch.data(), &count, sizeof(count));
    log.append(batch.data(), batch.size());
    {
      const std::lock_guard lock(mutex);
      outstanding -= count;
      changed.notify_all();
    }
    zmq_send(router, peer, static_cast<std::size_t>(peer_size), ZMQ_SNDMORE);
    zmq_send(router, batch.data(), batch.size(), 0);
    shipped += count;
    take_answers(ZMQ_DONTWAIT);
  }
  while (answered < options.messages) take_answers(0);
  const double took = now_seconds() - started;
  producer.join();
  const double own = cpu_seconds(RUSAGE_SELF) - cpu;
  const unsigned long end = 0;
  zmq_send(router, peer, static_cast<std::size_t>(peer_size), ZMQ_SNDMORE);
  zmq_send(router, &end, sizeof(end), 0);
  waitpid(worker, nullptr, 0);
  report(options, took, {}, own + cpu_seconds(RUSAGE_CHILDREN));
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
