#include "dray/plain_link.hpp"

namespace dray {

KeyPair make_key_pair() {
  auto keys = transport::make_curve_keys();
  return {std::move(keys.public_key), std::move(keys.secret_key)};
}

}  // namespace dray

namespace dray::plain {
namespace {

constexpr auto kAnewAfter = std::chrono::seconds(1);
constexpr auto kGivenUpAfter = std::chrono::seconds(10);

void check_key(const std::string& key, const char* which) {
  if (transport::is_curve_key(key)) return;
  throw EndpointError(std::string(which) +
                      " is no key: 40 characters of Z85, as `dray keygen` makes them");
}

}  // namespace

Ground::Ground(transport::Context* shared, const std::optional<EndpointKeys>& keys, bool binds,
               const Log& log)
    : own_(shared != nullptr ? nullptr : std::make_unique<transport::Context>()),
      context_(shared != nullptr ? shared : own_.get()),
      keys_(keys),
      binds_(binds) {
  if (!keys_) return;
  check_key(keys_->public_key, "public_key");
  check_key(keys_->secret_key, "secret_key");
  if (!binds_) {
    check_key(keys_->server_key, "server_key");
    return;
  }
  auto started =
      transport::Authenticator::start(*context_, keys_->allow_file, keys_->public_key, log);
  if (!started.ok()) throw EndpointError(started.error().text());
  authenticator_ = std::move(*started);
}

void Ground::secure(transport::SocketOptions& options) const {
  if (!keys_) return;
  if (binds_) {
    options.curve_server = {keys_->secret_key};
  } else {
    options.curve_client = {keys_->public_key, keys_->secret_key, keys_->server_key};
  }
}

void attach(transport::Socket& socket, const std::vector<std::string>& endpoints, bool bind) {
  if (endpoints.empty()) throw EndpointError("no endpoint is given");
  if (const auto watched = socket.watch_links(); !watched.ok()) {
    throw EndpointError(watched.error().text());
  }
  for (const auto& endpoint : endpoints) {
    const auto attached = bind ? socket.bind(endpoint) : socket.connect(endpoint);
    if (!attached.ok()) throw EndpointError(attached.error().text());
  }
}

void Links::take(transport::Socket& socket, SteadyTime now) {
  for (const auto link : socket.take_links()) {
    switch (link) {
      case transport::Link::kConnected:
        ++peers_;
        told_ = false;
        anew_at_.reset();
        break;
      case transport::Link::kDisconnected:
        if (peers_ > 0) --peers_;
        ++breaks_;
        if (!binds_ && peers_ == 0 && !anew_at_) anew_at_ = now + kGivenUpAfter;
        break;
      case transport::Link::kNeverMade:
        if (!binds_ && peers_ == 0 && !anew_at_) anew_at_ = now + kGivenUpAfter;
        break;
      case transport::Link::kTurnedAway:
      case transport::Link::kMismatch:
        if (binds_) break;
        if (!std::exchange(told_, true)) {
          log_.warning(link == transport::Link::kTurnedAway
                           ? "the other side does not allow this key; asking again every second"
                           : "only one side uses CURVE, or the other has another key; asking again "
                             "every second");
        }
        if (!anew_at_ || *anew_at_ > now + kAnewAfter) anew_at_ = now + kAnewAfter;
        break;
    }
  }
}

bool Links::wants_anew(SteadyTime now) {
  if (!anew_at_ || now < *anew_at_) return false;
  anew_at_ = now + kGivenUpAfter;
  peers_ = 0;
  return true;
}

}  // namespace dray::plain
