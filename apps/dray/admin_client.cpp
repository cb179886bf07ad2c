#include "dray/admin_client.hpp"

#include <curl/curl.h>
#include <unistd.h>

#include <memory>

#include "dray/admin_server.hpp"
#include "dray/disk/posix_directory.hpp"
#include "dray/spool/inspection.hpp"

namespace dray::app {
namespace {

std::size_t collect(char* data, std::size_t size, std::size_t count, void* out) {
  static_cast<std::string*>(out)->append(data, size * count);
  return size * count;
}

}  // namespace

Result<nlohmann::json> AdminClient::get(const std::string& path) const {
  return call(path, nullptr);
}

Result<nlohmann::json> AdminClient::post(const std::string& path,
                                         const nlohmann::json& body) const {
  const std::string text = body.dump();
  return call(path, &text);
}

Result<nlohmann::json> AdminClient::call(const std::string& path, const std::string* body) const {
  const std::string socket = directory_ + "/" + kAdminSocketName;
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(),
                                                                 &curl_easy_cleanup);
  DRAY_ASSERT(curl != nullptr);
  std::string answer;
  const std::string url = "http://localhost" + path;
  curl_easy_setopt(curl.get(), CURLOPT_UNIX_SOCKET_PATH, socket.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT, static_cast<long>(patience_.count()));
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, &collect);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &answer);
  if (body != nullptr) {
    curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(body->size()));
    curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDS, body->c_str());
  }
  const CURLcode code = curl_easy_perform(curl.get());
  if (code == CURLE_COULDNT_CONNECT) {
    if (access(directory_.c_str(), X_OK) != 0 && errno == EACCES) {
      return Error{ErrorCode::kIo,
                   "this user may not look into it; run as the user that runs its app", directory_,
                   0};
    }
    if (access(socket.c_str(), F_OK) == 0 && access(socket.c_str(), W_OK) != 0) {
      return Error{ErrorCode::kIo, "this user may not open it; run as the user that runs its app",
                   socket, 0};
    }
    if (auto folder = open_posix_directory(directory_, false);
        folder.ok() && !spool::holds_spool(**folder)) {
      return Error{ErrorCode::kNotFound, "no spool is here (yet): its app makes it", directory_, 0};
    }
    return Error{ErrorCode::kNotFound,
                 "no running process serves this spool; start its app, or `dray run --spool " +
                     directory_ + "`",
                 directory_, 0};
  }
  if (code == CURLE_OPERATION_TIMEDOUT) {
    return Error{ErrorCode::kTimeout,
                 "the process that serves this spool did not answer within " +
                     std::to_string(patience_.count()) +
                     " s; it may be stopped, or wait for its disk",
                 directory_, 0};
  }
  if (code != CURLE_OK) {
    return Error{ErrorCode::kIo, curl_easy_strerror(code), socket, 0};
  }
  long status = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
  auto parsed = nlohmann::json::parse(answer, nullptr, false);
  if (parsed.is_discarded()) {
    return Error{ErrorCode::kCorrupt, "the answer is no JSON", socket, 0};
  }
  if (status >= 400) {
    return Error{error_code_of(parsed.value("title", "")),
                 parsed.value("detail", "HTTP " + std::to_string(status)), "", 0};
  }
  return parsed;
}

std::string AdminClient::escape(const std::string& text) {
  char* escaped = curl_easy_escape(nullptr, text.data(), static_cast<int>(text.size()));
  DRAY_ASSERT(escaped != nullptr);
  std::string out(escaped);
  curl_free(escaped);
  return out;
}

}  // namespace dray::app
