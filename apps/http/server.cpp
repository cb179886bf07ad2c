#include "http/server.hpp"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

namespace dray::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace beast_http = boost::beast::http;

constexpr std::size_t kStreamUnsentMax = 64U << 10;
constexpr auto kAcceptRetry = std::chrono::milliseconds(50);

std::string percent_decode(std::string_view text, bool plus_is_space) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](std::size_t at) {
      const char c = at < text.size() ? text[at] : 'x';
      if (c >= '0' && c <= '9') return c - '0';
      if (c >= 'a' && c <= 'f') return c - 'a' + 10;
      if (c >= 'A' && c <= 'F') return c - 'A' + 10;
      return -1;
    };
    if (text[i] == '%' && digit(i + 1) >= 0 && digit(i + 2) >= 0) {
      out += static_cast<char>(digit(i + 1) * 16 + digit(i + 2));
      i += 2;
    } else {
      out += plus_is_space && text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

Request to_request(beast_http::request<beast_http::string_body>&& in) {
  Request request;
  request.method = std::string(in.method_string());
  const std::string target(in.target());
  const auto mark = target.find('?');
  request.path = percent_decode(std::string_view(target).substr(0, mark), false);
  if (mark != std::string::npos) {
    std::string_view query = std::string_view(target).substr(mark + 1);
    while (!query.empty()) {
      const auto end = query.find('&');
      const auto pair = query.substr(0, end);
      const auto equals = pair.find('=');
      request.query[percent_decode(pair.substr(0, equals), true)] =
          equals == std::string_view::npos ? "" : percent_decode(pair.substr(equals + 1), true);
      query = end == std::string_view::npos ? std::string_view{} : query.substr(end + 1);
    }
  }
  for (const auto& field : in) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    request.headers[name] = std::string(field.value());
  }
  request.body = std::move(in.body());
  return request;
}

// RFC 9112, 6.1 and 6.3: where a body ends must be beyond doubt, or what follows it is somebody's
// request to one server and a part of the body to another.
const char* framing_fault(const beast_http::request<beast_http::string_body>& message) {
  const auto codings = message.count(beast_http::field::transfer_encoding);
  if (codings == 0) return nullptr;
  if (codings > 1 || !beast::iequals(message[beast_http::field::transfer_encoding], "chunked")) {
    return "the only transfer coding that is taken is 'chunked'";
  }
  if (message.count(beast_http::field::content_length) != 0) {
    return "a request has a Content-Length or a Transfer-Encoding, not both";
  }
  if (message.version() < 11) return "HTTP/1.0 knows no Transfer-Encoding";
  return nullptr;
}

// What connections share; touched on the server's thread, but for `open`.
struct Shared {
  Limits limits;
  Handler handler;
  Log log;
  std::atomic<std::size_t> open{0};
};

template <typename Protocol>
class Connection final : public std::enable_shared_from_this<Connection<Protocol>> {
 public:
  using Stream = beast::basic_stream<Protocol, asio::any_io_executor>;
  using std::enable_shared_from_this<Connection<Protocol>>::shared_from_this;

  Connection(typename Protocol::socket socket, std::shared_ptr<Shared> shared)
      : stream_(std::move(socket)), shared_(std::move(shared)) {
    ++shared_->open;
  }
  ~Connection() { --shared_->open; }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void read() {
    parser_.emplace();
    parser_->header_limit(shared_->limits.header_bytes_max);
    parser_->body_limit(shared_->limits.body_bytes_max);
    stream_.expires_after(shared_->limits.read_timeout);
    beast_http::async_read_header(
        stream_, buffer_, *parser_,
        [self = shared_from_this()](beast::error_code error, std::size_t) {
          self->on_header(error);
        });
  }

  void close() {
    beast::error_code ignored;
    stream_.socket().close(ignored);
  }

 private:
  // Answers one request; safe on any thread.
  class Target final : public Responder::Target {
   public:
    Target(std::shared_ptr<Connection> connection, bool keep_alive)
        : connection_(std::move(connection)), keep_alive_(keep_alive) {}
    ~Target() override {
      if (!used_.exchange(true)) {
        deliver(problem(500, "Internal Server Error", "the request was not answered"));
      }
    }
    Target(const Target&) = delete;
    Target& operator=(const Target&) = delete;

    void reply(Response response) override {
      if (!used_.exchange(true)) deliver(std::move(response));
    }
    std::shared_ptr<EventStream> stream() override {
      used_ = true;
      auto events = std::make_shared<Events>(connection_);
      asio::post(connection_->stream_.get_executor(),
                 [connection = connection_, events] { connection->begin_stream(events); });
      return events;
    }

   private:
    void deliver(Response response) {
      asio::post(connection_->stream_.get_executor(),
                 [connection = connection_, keep_alive = keep_alive_,
                  response = std::move(response)]() mutable {
                   connection->write(std::move(response), keep_alive);
                 });
    }
    std::shared_ptr<Connection> connection_;
    bool keep_alive_;
    std::atomic<bool> used_{false};
  };

  class Events final : public EventStream {
   public:
    explicit Events(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}

    bool send(std::string_view event, std::string_view data) override {
      if (!*open_) return false;
      std::string text;
      if (!event.empty()) text += "event: " + std::string(event) + "\n";
      text += "data: " + std::string(data) + "\n\n";
      asio::post(connection_->stream_.get_executor(),
                 [connection = connection_, text = std::move(text), this_open = open_flag()] {
                   if (*this_open) connection->push(text);
                 });
      return true;
    }
    bool open() const override { return *open_; }
    void close() override {
      asio::post(connection_->stream_.get_executor(),
                 [connection = connection_] { connection->close(); });
    }
    std::shared_ptr<std::atomic<bool>> open_flag() { return open_; }

   private:
    std::shared_ptr<Connection> connection_;
    std::shared_ptr<std::atomic<bool>> open_ = std::make_shared<std::atomic<bool>>(true);
  };

  void on_header(beast::error_code error) {
    if (error) return on_read(error);
    if (const char* fault = framing_fault(parser_->get())) {
      return write(problem(400, "Bad Request", fault), false);
    }
    if (parser_->is_done()) return on_read(error);
    if (!beast::iequals(parser_->get()[beast_http::field::expect], "100-continue")) {
      return read_body();
    }
    static constexpr std::string_view kGoOn = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(stream_, asio::buffer(kGoOn),
                      [self = shared_from_this()](beast::error_code failed, std::size_t) {
                        if (failed) return self->close();
                        self->read_body();
                      });
  }

  void read_body() {
    // It came with the header, most times.
    if (buffer_.size() > 0) {
      beast::error_code error;
      parser_->eager(true);
      buffer_.consume(parser_->put(buffer_.data(), error));
      if (error == beast_http::error::need_more) error = {};
      if (error || parser_->is_done()) return on_read(error);
    }
    beast_http::async_read(stream_, buffer_, *parser_,
                           [self = shared_from_this()](beast::error_code error, std::size_t) {
                             self->on_read(error);
                           });
  }

  void on_read(beast::error_code error) {
    if (error == beast_http::error::body_limit) {
      return write(problem(413, "Content Too Large",
                           "the body is larger than " +
                               std::to_string(shared_->limits.body_bytes_max) + " bytes"),
                   false);
    }
    if (error == beast_http::error::header_limit) {
      return write(problem(431, "Request Header Fields Too Large", "the headers are too large"),
                   false);
    }
    if (error == beast::error::timeout) return close();
    if (error == beast_http::error::end_of_stream || error == asio::error::connection_reset ||
        error == asio::error::operation_aborted || error == asio::error::eof ||
        error == beast_http::error::partial_message) {
      return close();
    }
    if (error) {
      return write(problem(400, "Bad Request", "this is no HTTP/1.1 request: " + error.message()),
                   false);
    }
    stream_.expires_never();
    auto message = parser_->release();
    // The answer to HEAD has no body; ours has, so the connection ends with it.
    const bool keep_alive = message.keep_alive() && message.method() != beast_http::verb::head;
    const auto target = std::make_shared<Target>(shared_from_this(), keep_alive);
    try {
      shared_->handler(to_request(std::move(message)), Responder(target));
    } catch (const std::exception& exception) {
      shared_->log.error(std::string("request failed: ") + exception.what());
      target->reply(problem(500, "Internal Server Error", "see the log"));
    }
  }

  void write(Response response, bool keep_alive) {
    auto out = std::make_shared<beast_http::response<beast_http::string_body>>();
    out->version(11);
    out->result(response.status);
    out->set(beast_http::field::content_type, response.content_type);
    out->set("X-Content-Type-Options", "nosniff");
    for (const auto& [name, value] : response.headers) out->set(name, value);
    out->body() = std::move(response.body);
    out->keep_alive(keep_alive);
    out->prepare_payload();
    stream_.expires_after(shared_->limits.write_timeout);
    beast_http::async_write(
        stream_, *out,
        [self = shared_from_this(), out, keep_alive](beast::error_code error, std::size_t) {
          if (error) return self->close();
          if (!keep_alive) return self->linger();
          self->read();
        });
  }

  // Half-closes and reads on for a moment, so that a client that is still sending sees the answer
  // and not a reset.
  void linger() {
    beast::error_code ignored;
    stream_.socket().shutdown(Protocol::socket::shutdown_send, ignored);
    stream_.expires_after(std::chrono::seconds(2));
    discard();
  }
  void discard() {
    stream_.async_read_some(asio::buffer(discarded_),
                            [self = shared_from_this()](beast::error_code error, std::size_t) {
                              if (error) return self->close();
                              self->discard();
                            });
  }

  void begin_stream(const std::shared_ptr<Events>& events) {
    events_open_ = events->open_flag();
    stream_.expires_never();
    push(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n");
    watch_close();
  }

  // A client that goes away ends its read side.
  void watch_close() {
    stream_.async_read_some(asio::buffer(discarded_),
                            [self = shared_from_this()](beast::error_code error, std::size_t) {
                              if (error) return self->end_stream();
                              self->watch_close();
                            });
  }

  void end_stream() {
    if (events_open_) *events_open_ = false;
    close();
  }

  void push(const std::string& text) {
    unsent_bytes_ += text.size();
    if (unsent_bytes_ > kStreamUnsentMax) return end_stream();
    unsent_.push_back(text);
    if (unsent_.size() == 1) write_next();
  }

  void write_next() {
    asio::async_write(stream_.socket(), asio::buffer(unsent_.front()),
                      [self = shared_from_this()](beast::error_code error, std::size_t) {
                        if (error) return self->end_stream();
                        self->unsent_bytes_ -= self->unsent_.front().size();
                        self->unsent_.pop_front();
                        if (!self->unsent_.empty()) self->write_next();
                      });
  }

  Stream stream_;
  std::shared_ptr<Shared> shared_;
  beast::flat_buffer buffer_{std::size_t{1} << 20};
  std::optional<beast_http::request_parser<beast_http::string_body>> parser_;
  std::array<char, 512> discarded_{};
  std::deque<std::string> unsent_;
  std::size_t unsent_bytes_ = 0;
  std::shared_ptr<std::atomic<bool>> events_open_;
};

template <typename Protocol>
class BeastServer final : public Server {
 public:
  BeastServer(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}
  ~BeastServer() override { stop(); }
  BeastServer(const BeastServer&) = delete;
  BeastServer& operator=(const BeastServer&) = delete;

  Status listen(const typename Protocol::endpoint& endpoint, const std::string& shown) {
    beast::error_code error;
    acceptor_.open(endpoint.protocol(), error);
    if constexpr (std::is_same_v<Protocol, asio::ip::tcp>) {
      if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    }
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(4'096, error);
    if (error) {
      const bool in_use = error == asio::error::address_in_use;
      return Error{in_use ? ErrorCode::kConflict : ErrorCode::kIo,
                   in_use ? "port in use; stop the program that has it, or listen on another"
                          : "listen failed",
                   shown, in_use ? 0 : error.value()};
    }
    accept();
    thread_ = std::thread([this] { context_.run(); });
    return {};
  }

  std::string address() const override { return address_; }
  void set_address(std::string address) { address_ = std::move(address); }
  typename Protocol::endpoint local() const { return acceptor_.local_endpoint(); }

  void stop() override {
    context_.stop();
    if (thread_.joinable()) thread_.join();
    beast::error_code ignored;
    acceptor_.close(ignored);
    if (!unix_path_.empty()) unlink(unix_path_.c_str());
    unix_path_.clear();
  }
  void own_path(std::string path) { unix_path_ = std::move(path); }

 private:
  void accept() {
    acceptor_.async_accept([this](beast::error_code error, typename Protocol::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (error) {  // out of descriptors: try again when some were closed
        retry_.expires_after(kAcceptRetry);
        retry_.async_wait([this](beast::error_code) { accept(); });
        return;
      }
      if (shared_->open < shared_->limits.connections_max) {
        std::make_shared<Connection<Protocol>>(std::move(socket), shared_)->read();
      }
      accept();
    });
  }

  std::shared_ptr<Shared> shared_;
  asio::io_context context_{1};
  typename Protocol::acceptor acceptor_{context_};
  asio::steady_timer retry_{context_};
  std::string address_;
  std::string unix_path_;
  std::thread thread_;
};

// Idle connections must not use up the descriptors that the rest of the program needs.
std::size_t connections_allowed(std::size_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, std::max<rlim_t>(limit.rlim_cur, 65'536));
  (void)setrlimit(RLIMIT_NOFILE, &limit);
  (void)getrlimit(RLIMIT_NOFILE, &limit);
  return std::min<std::size_t>(wanted, static_cast<std::size_t>(limit.rlim_cur) * 3 / 4);
}

Result<std::unique_ptr<Server>> start_unix(const std::string& path,
                                           std::shared_ptr<Shared> shared) {
  using Local = asio::local::stream_protocol;
  if (path.size() > 107) {
    return Error{ErrorCode::kInvalid,
                 "a Unix socket's path may have 107 bytes; choose a shorter one", path, 0};
  }
  auto server = std::make_unique<BeastServer<Local>>(std::move(shared));
  unlink(path.c_str());
  const auto before = umask(0177);
  const auto listening = server->listen(Local::endpoint(path), path);
  umask(before);
  if (!listening.ok()) return listening.error();
  server->own_path(path);
  server->set_address("unix:" + path);
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace

Response problem(unsigned status, std::string_view title, std::string_view detail) {
  const nlohmann::json body{
      {"type", "about:blank"}, {"title", title}, {"status", status}, {"detail", detail}};
  return Response{status, "application/problem+json",
                  body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)};
}

Result<std::unique_ptr<Server>> Server::start(const std::string& listen, const Limits& limits,
                                              Handler handler, Log log) {
  auto shared = std::make_shared<Shared>();
  shared->limits = limits;
  shared->limits.connections_max = connections_allowed(limits.connections_max);
  shared->handler = std::move(handler);
  shared->log = std::move(log);
  if (listen.rfind("unix:", 0) == 0) return start_unix(listen.substr(5), std::move(shared));
  const Error bad{ErrorCode::kInvalid, "write it like \"127.0.0.1:8080\" or \"[::1]:8080\"", listen,
                  0};
  const auto colon = listen.rfind(':');
  if (colon == std::string::npos) return bad;
  std::string host = listen.substr(0, colon);
  const std::string port_text = listen.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  if (host == "localhost") host = "127.0.0.1";
  unsigned long port = 65'536;
  if (!port_text.empty() && port_text.size() <= 5 &&
      port_text.find_first_not_of("0123456789") == std::string::npos) {
    port = std::stoul(port_text);
  }
  beast::error_code error;
  const auto address = asio::ip::make_address(host, error);
  if (error || port > 65'535) return bad;
  if (!address.is_loopback()) {
    return Error{ErrorCode::kInvalid,
                 "HTTP beyond this machine needs a token, which this version does not have yet; "
                 "listen on 127.0.0.1 or [::1] and put a proxy before it",
                 listen, 0};
  }
  using Tcp = asio::ip::tcp;
  auto server = std::make_unique<BeastServer<Tcp>>(std::move(shared));
  DRAY_TRY(server->listen(Tcp::endpoint(address, static_cast<std::uint16_t>(port)), listen));
  const std::string shown_host = address.is_v6() ? "[" + host + "]" : host;
  server->set_address(shown_host + ":" + std::to_string(server->local().port()));
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace dray::http
