// The plain patterns beside bare libzmq, in one run, alternating: messages per second of push/pull,
// and round trips of request/reply. Two processes each, over ipc.
//
//   build/release/bin/plain_bench [SECONDS]      of each measurement; default 2
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "dray/pipeline.hpp"
#include "dray/request_reply.hpp"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 5;
constexpr std::size_t kBody = 256;
constexpr std::size_t kFrame = 32U << 10;  // as Push fills them
const std::string kEndpoint = "ipc:///tmp/dray-plain-bench-" + std::to_string(getpid());

double seconds_since(Clock::time_point begun) {
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.at(values.size() / 2);
}

// Runs `other` in a process of its own while `own` runs in this one.
double beside(const std::function<void()>& other, const std::function<double()>& own) {
  const pid_t child = fork();
  if (child == 0) {
    other();
    _exit(0);
  }
  const double result = own();
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  unlink(kEndpoint.c_str() + 6);
  return result;
}

struct Bare {
  explicit Bare(int type, bool bind) : context(zmq_ctx_new()), socket(zmq_socket(context, type)) {
    const int linger = 0;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof(linger));
    if (bind) {
      zmq_bind(socket, kEndpoint.c_str());
    } else {
      zmq_connect(socket, kEndpoint.c_str());
    }
  }
  ~Bare() {
    zmq_close(socket);
    zmq_ctx_term(context);
  }
  Bare(const Bare&) = delete;
  Bare& operator=(const Bare&) = delete;
  void* context;
  void* socket;
};

// Messages per second, `per_frame` bytes of them in a frame.
double bare_push_pull(double seconds, std::size_t per_frame) {
  return beside(
      [&] {
        const Bare push(ZMQ_PUSH, false);
        const std::string body(kBody, 'x');
        std::string frame;
        for (;;) {
          frame.clear();
          do {
            const auto size = static_cast<std::uint32_t>(body.size());
            frame.append(reinterpret_cast<const char*>(&size), sizeof(size));
            frame.append(body);
          } while (frame.size() + kBody + 4 <= per_frame);
          zmq_send(push.socket, frame.data(), frame.size(), 0);
        }
      },
      [&] {
        const Bare pull(ZMQ_PULL, true);
        std::uint64_t count = 0;
        std::uint64_t bytes = 0;
        const auto take = [&] {
          zmq_msg_t message;
          zmq_msg_init(&message);
          zmq_msg_recv(&message, pull.socket, 0);
          const auto* data = static_cast<const char*>(zmq_msg_data(&message));
          const std::size_t size = zmq_msg_size(&message);
          for (std::size_t at = 0; at + 4 <= size; ++count) {
            std::uint32_t body = 0;
            std::memcpy(&body, data + at, sizeof(body));
            bytes += static_cast<unsigned char>(data[at + 4]);
            at += 4 + body;
          }
          zmq_msg_close(&message);
        };
        take();
        count = 0;
        const auto begun = Clock::now();
        while (seconds_since(begun) < seconds) take();
        return bytes == 0 ? 0 : static_cast<double>(count) / seconds_since(begun);
      });
}

double dray_push_pull(double seconds) {
  return beside(
      [] {
        dray::PipelineOptions options;
        options.wait = std::chrono::seconds(10);
        dray::BytesPush push({kEndpoint}, options);
        const std::string body(kBody, 'x');
        for (;;) (void)push.push_bytes(body);
      },
      [&] {
        dray::BytesPull pull({kEndpoint}, {});
        (void)pull.pull_bytes(std::chrono::seconds(10));
        std::uint64_t count = 0;
        std::uint64_t bytes = 0;
        const auto begun = Clock::now();
        for (;;) {
          const auto body = pull.pull_bytes(std::chrono::seconds(1));
          if (!body) break;
          bytes += static_cast<unsigned char>(body->front());
          if (++count % 128 == 0 && seconds_since(begun) >= seconds) break;
        }
        return bytes == 0 ? 0 : static_cast<double>(count) / seconds_since(begun);
      });
}

// Microseconds, p50, of round trips one after the other.
double p50_of(double seconds, const std::function<void()>& call) {
  for (int i = 0; i < 100; ++i) call();
  std::vector<double> times;
  const auto begun = Clock::now();
  while (seconds_since(begun) < seconds) {
    const auto before = Clock::now();
    call();
    times.push_back(seconds_since(before) * 1e6);
  }
  return median(times);
}

double bare_round_trip(double seconds) {
  return beside(
      [] {
        const Bare router(ZMQ_ROUTER, true);
        char id[64];
        char body[1024];
        for (;;) {
          const int id_size = zmq_recv(router.socket, id, sizeof(id), 0);
          const int size = zmq_recv(router.socket, body, sizeof(body), 0);
          zmq_send(router.socket, id, static_cast<std::size_t>(id_size), ZMQ_SNDMORE);
          zmq_send(router.socket, body, static_cast<std::size_t>(size), 0);
        }
      },
      [&] {
        const Bare dealer(ZMQ_DEALER, false);
        const std::string body(kBody, 'x');
        char answer[1024];
        return p50_of(seconds, [&] {
          zmq_send(dealer.socket, body.data(), body.size(), 0);
          zmq_recv(dealer.socket, answer, sizeof(answer), 0);
        });
      });
}

double dray_round_trip(double seconds) {
  return beside(
      [] {
        const dray::Service<std::string, std::string> service(
            kEndpoint, [](const std::string& text) -> dray::Result<std::string> { return text; });
        for (;;) pause();
      },
      [&] {
        dray::Client<std::string, std::string> client(kEndpoint);
        const std::string body(kBody, 'x');
        return p50_of(seconds, [&] { (void)client.call(body, std::chrono::seconds(5)); });
      });
}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 2;
  if (count > 2 || seconds <= 0) {
    std::fprintf(stderr, "usage: plain_bench [SECONDS]\n");
    return 2;
  }
  std::vector<double> single, batched, ours, bare_trip, our_trip;
  for (int round = 0; round < kRounds; ++round) {
    single.push_back(bare_push_pull(seconds, 0));
    batched.push_back(bare_push_pull(seconds, kFrame));
    ours.push_back(dray_push_pull(seconds));
    bare_trip.push_back(bare_round_trip(seconds));
    our_trip.push_back(dray_round_trip(seconds));
  }
  std::printf("push/pull, %zu bytes, messages per second (medians of %d)\n", kBody, kRounds);
  std::printf("  bare libzmq, one in a frame  %9.0f\n", median(single));
  std::printf("  bare libzmq, 32 KiB frames   %9.0f\n", median(batched));
  std::printf(
      "  Push and Pull                %9.0f   %.2f of bare at equal batching, %.1f x one in a "
      "frame\n",
      median(ours), median(ours) / median(batched), median(ours) / median(single));
  std::printf("request/reply, %zu bytes, microseconds (p50)\n", kBody);
  std::printf("  bare libzmq, DEALER/ROUTER   %9.1f\n", median(bare_trip));
  std::printf("  Client and Service           %9.1f   %.2f of bare\n", median(our_trip),
              median(our_trip) / median(bare_trip));
  return 0;
}
