#include "dray/transport/authenticator.hpp"

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <tuple>

#include "dray/thread_traits.hpp"
#include "dray/transport/context_impl.hpp"
#include "dray/transport/curve.hpp"
#include "dray/uuid.hpp"

namespace dray::transport {
namespace {

constexpr const char* kZapEndpoint = "inproc://zeromq.zap.01";
constexpr std::size_t kZapFramesMax = 16;
constexpr std::size_t kToldMax = 1'000;
// Why a list could not be read may pass without a trace in the file.
constexpr auto kReadAgain = std::chrono::seconds(1);

// Tells one state of a file from another.
using FileState =
    std::tuple<dev_t, ino_t, off_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
FileState state_of(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return {};
  return {info.st_dev,          info.st_ino,         info.st_size,        info.st_mtim.tv_sec,
          info.st_mtim.tv_nsec, info.st_ctim.tv_sec, info.st_ctim.tv_nsec};
}

}  // namespace

struct Authenticator::State {
  std::string allow_file;
  std::string own_key;
  Log log;
  zmq::socket_t socket;  // of the thread
  WakeUp wake_up;
  std::atomic<bool> stopping{false};
  std::thread thread;

  // Guarded by mutex.
  std::mutex mutex;
  AllowedKeys allowed;
  FileState read_at;
  std::optional<std::chrono::steady_clock::time_point> failed_at;  // it could not be read then
  std::uint64_t version = 0;
  std::set<std::string> told;  // keys that were turned away, and that the log knows of

  void reload() {
    if (allow_file.empty()) return;
    const FileState now = state_of(allow_file);
    const auto clock = std::chrono::steady_clock::now();
    const bool again = failed_at && clock - *failed_at >= kReadAgain;
    if (now == read_at && !again) return;
    auto read = read_allow_list(allow_file);
    if (!read.ok()) {
      if (now != read_at || !failed_at) {
        log.error("the allow list is not taken, the last good one stays in force: " +
                  read.error().text());
      }
      read_at = now;
      failed_at = clock;
      return;
    }
    read_at = now;
    failed_at.reset();
    allowed = std::move(*read);
    told.clear();
    ++version;
    log.info("the allow list was read", {{"keys", std::to_string(allowed.size())}});
  }

  void run();
  void answer();
};

Authenticator::Authenticator(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Authenticator>> Authenticator::start(Context& context,
                                                            std::string allow_file,
                                                            std::string own_key, Log log) {
  auto state = std::make_unique<State>();
  state->allow_file = std::move(allow_file);
  state->own_key = std::move(own_key);
  state->log = std::move(log);
  if (!state->allow_file.empty()) {
    state->read_at = state_of(state->allow_file);
    auto read = read_allow_list(state->allow_file);
    if (!read.ok()) return read.error();
    state->allowed = std::move(*read);
  }
  try {
    state->socket = zmq::socket_t(context.impl().context, zmq::socket_type::rep);
    state->socket.set(zmq::sockopt::linger, 0);
    state->socket.bind(kZapEndpoint);
  } catch (const zmq::error_t& error) {
    return io_error("bind", kZapEndpoint, error.num());
  }
  auto* raw = state.get();
  raw->thread = std::thread([raw] {
    name_thread("dray-keys");
    raw->run();
  });
  return std::unique_ptr<Authenticator>(new Authenticator(std::move(state)));
}

Authenticator::~Authenticator() {
  state_->stopping = true;
  state_->wake_up.wake();
  state_->thread.join();
}

bool Authenticator::allows(const std::string& key, Role role) {
  const std::lock_guard lock(state_->mutex);
  state_->reload();
  if (key == state_->own_key) return true;
  const auto found = state_->allowed.find(key);
  return found != state_->allowed.end() && (found->second.roles & static_cast<unsigned>(role)) != 0;
}

std::uint64_t Authenticator::version() {
  const std::lock_guard lock(state_->mutex);
  state_->reload();
  return state_->version;
}

void Authenticator::State::run() {
  while (!stopping) {
    std::array<zmq::pollitem_t, 2> items{
        {{socket.handle(), 0, ZMQ_POLLIN, 0}, {nullptr, wake_up.fd(), ZMQ_POLLIN, 0}}};
    try {
      zmq::poll(items.data(), items.size(), std::chrono::milliseconds(-1));
      if ((items[0].revents & ZMQ_POLLIN) != 0) answer();
    } catch (const zmq::error_t& error) {
      if (error.num() != EINTR) return log.error(std::string("ZAP: ") + error.what());
    }
  }
  socket.close();
}

// Request: version, id, domain, address, identity, mechanism, credentials. Reply: version, id,
// status, text, user, metadata.
void Authenticator::State::answer() {
  std::vector<std::string> frames;
  for (bool more = true; more;) {
    zmq::message_t frame;
    if (!socket.recv(frame)) return;
    more = frame.more();
    if (frames.size() < kZapFramesMax) frames.push_back(frame.to_string());
  }
  std::string user;
  bool good = frames.size() == 7 && frames[0] == "1.0" && frames[5] == "CURVE" &&
              frames[6].size() == kCurveKeyBytes;
  if (good) {
    std::array<std::uint8_t, kCurveKeyBytes> bytes{};
    std::memcpy(bytes.data(), frames[6].data(), kCurveKeyBytes);
    std::array<char, 41> text{};
    zmq_z85_encode(text.data(), bytes.data(), kCurveKeyBytes);
    user = text.data();
  }
  const std::lock_guard lock(mutex);
  if (good) {
    reload();
    good = user == own_key || allowed.count(user) != 0;
  }
  if (!good && told.size() < kToldMax && told.insert(user).second) {
    log.warning("a connection was turned away: its key is not in the allow list",
                {{"address", frames.size() > 3 ? frames[3] : ""}, {"key", user}});
  }
  const std::array<std::string, 6> reply{"1.0",
                                         frames.size() > 1 ? frames[1] : "",
                                         good ? "200" : "400",
                                         good ? "OK" : "this key may not connect",
                                         good ? user : "",
                                         ""};
  for (std::size_t i = 0; i < reply.size(); ++i) {
    socket.send(zmq::buffer(reply[i]),
                i + 1 < reply.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
  }
}

namespace {

constexpr auto kSelfTest = std::chrono::seconds(2);

// A signal that some handler takes does not end it.
bool receive_by(zmq::socket_t& socket, zmq::message_t& message,
                std::chrono::steady_clock::time_point until) {
  while (std::chrono::steady_clock::now() < until) {
    try {
      if (socket.recv(message)) return true;
    } catch (const zmq::error_t& error) {
      if (error.num() != EINTR) throw;
    }
  }
  return false;
}

}  // namespace

Status check_strangers_are_refused(const std::string& endpoint, const std::string& server_key) {
  std::string to = endpoint;
  for (const char* any : {"//0.0.0.0:", "//*:", "//[::]:"}) {
    if (const auto at = to.find(any); at != std::string::npos) {
      to.replace(at, std::strlen(any), "//127.0.0.1:");
    }
  }
  const CurveKeys stranger = make_curve_keys();
  try {
    zmq::context_t context{1};
    zmq::socket_t socket(context, zmq::socket_type::dealer);
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::ipv6, true);
    socket.set(zmq::sockopt::curve_serverkey, server_key);
    socket.set(zmq::sockopt::curve_publickey, stranger.public_key);
    socket.set(zmq::sockopt::curve_secretkey, stranger.secret_key);
    const std::string name = "inproc://stranger-" + uuid_v4().text();
    const int events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                       ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                       ZMQ_EVENT_DISCONNECTED;
    if (zmq_socket_monitor(socket.handle(), name.c_str(), events) != 0) {
      return io_error("socket monitor", name, zmq_errno());
    }
    zmq::socket_t monitor(context, zmq::socket_type::pair);
    monitor.set(zmq::sockopt::linger, 0);
    monitor.set(zmq::sockopt::rcvtimeo, 100);
    monitor.connect(name);
    socket.connect(to);
    zmq::message_t event;
    const auto until = std::chrono::steady_clock::now() + kSelfTest;
    const bool told = receive_by(monitor, event, until) && event.size() >= sizeof(std::uint16_t);
    std::uint16_t number = 0;
    if (told) std::memcpy(&number, event.data(), sizeof(number));
    zmq_socket_monitor(socket.handle(), nullptr, 0);
    if (!told) {
      return Error{ErrorCode::kTimeout, "nobody answers the self-test of its keys within 2s", to,
                   0};
    }
    if (number != ZMQ_EVENT_HANDSHAKE_SUCCEEDED) return {};
  } catch (const zmq::error_t& error) {
    return io_error("the self-test of the keys", to, error.num());
  }
  return Error{ErrorCode::kConflict,
               "a key that nobody allowed was let in: this libzmq does not check keys; not serving",
               to, 0};
}

}  // namespace dray::transport
