#include "shop/email/mail_transport.hpp"

#include <curl/curl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <stdexcept>

#include "shop/durable_file.hpp"

namespace shop {
namespace {

constexpr long kConnectTimeoutMs = 5'000;
// Until the mail is with the server; and until it answers, which may scan it first. RFC 5321,
// section 4.5.3.2.6, asks for 10 minutes; who gives up sooner sends it twice.
constexpr auto kUploadTimeout = std::chrono::seconds(25);
constexpr long kTotalTimeoutMs = 600'000;

// https://cr.yp.to/proto/maildir.html
class Maildir final : public MailTransport {
 public:
  explicit Maildir(std::string folder) : folder_(std::move(folder)) {
    for (const auto* name : {"tmp", "new", "cur"}) {
      std::filesystem::create_directories(folder_ + "/" + name);
    }
  }

  MailOutcome send(const Mail&, const std::string& rendered) override {
    const std::string name = unique_name();
    try {
      write_durably(folder_, "tmp/" + name, "new/" + name, rendered);
    } catch (const NotWritten& fault) {
      return {MailOutcome::Kind::kTryAgain, fault.what()};
    }
    return {};
  }

 private:
  static std::string unique_name() {
    static std::atomic<unsigned> deliveries{0};
    const auto us = std::chrono::duration_cast<std::chrono::microseconds>(
                        std::chrono::system_clock::now().time_since_epoch())
                        .count();
    char host[256] = "localhost";
    (void)gethostname(host, sizeof(host) - 1);
    return std::to_string(us / 1'000'000) + ".M" + std::to_string(us % 1'000'000) + "P" +
           std::to_string(getpid()) + "Q" + std::to_string(++deliveries) + "." + host;
  }
  std::string folder_;
};

class Smtp final : public MailTransport {
 public:
  Smtp(std::string url, SmtpLogin login, bool require_tls)
      : url_(std::move(url)), login_(std::move(login)), require_tls_(require_tls) {}

  MailOutcome send(const Mail& mail, const std::string& rendered) override {
    const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(),
                                                                   &curl_easy_cleanup);
    if (!curl) return {MailOutcome::Kind::kTryAgain, "libcurl could not start"};
    const std::string from = "<" + mail.from.address + ">";
    const std::string to = "<" + mail.to.address + ">";
    const std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> recipients(
        curl_slist_append(nullptr, to.c_str()), &curl_slist_free_all);
    Upload upload{rendered, 0, std::chrono::steady_clock::now() + kUploadTimeout};
    Refusal refusal;
    char detail[CURL_ERROR_SIZE] = "";
    curl_easy_setopt(curl.get(), CURLOPT_URL, url_.c_str());
    curl_easy_setopt(curl.get(), CURLOPT_MAIL_FROM, from.c_str());
    curl_easy_setopt(curl.get(), CURLOPT_MAIL_RCPT, recipients.get());
    curl_easy_setopt(curl.get(), CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(curl.get(), CURLOPT_READFUNCTION, &Upload::read);
    curl_easy_setopt(curl.get(), CURLOPT_READDATA, &upload);
    curl_easy_setopt(curl.get(), CURLOPT_HEADERFUNCTION, &Refusal::on_line);
    curl_easy_setopt(curl.get(), CURLOPT_HEADERDATA, &refusal);
    curl_easy_setopt(curl.get(), CURLOPT_XFERINFOFUNCTION, &Upload::is_late);
    curl_easy_setopt(curl.get(), CURLOPT_XFERINFODATA, &upload);
    curl_easy_setopt(curl.get(), CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl.get(), CURLOPT_CONNECTTIMEOUT_MS, kConnectTimeoutMs);
    curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT_MS, kTotalTimeoutMs);
    curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl.get(), CURLOPT_ERRORBUFFER, detail);
    // With TLS asked for there is no way back to plain text.
    curl_easy_setopt(curl.get(), CURLOPT_USE_SSL,
                     static_cast<long>(require_tls_ ? CURLUSESSL_ALL : CURLUSESSL_TRY));
    if (!login_.user.empty()) {
      curl_easy_setopt(curl.get(), CURLOPT_USERNAME, login_.user.c_str());
      curl_easy_setopt(curl.get(), CURLOPT_PASSWORD, login_.password.c_str());
    }
    const CURLcode code = curl_easy_perform(curl.get());
    if (code == CURLE_OK) return {};
    long status = 0;
    curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
    const std::string reason = "smtp " + std::to_string(status) + ": " +
                               (!refusal.words.empty() ? refusal.words
                                : detail[0] != '\0'    ? std::string(detail)
                                                       : curl_easy_strerror(code));
    // 5xx is for good if it is about this recipient or this mail. What comes before (greeting, TLS,
    // login, sender) is about us, and is mended by us, not by a dead letter for each order.
    const bool about_this = upload.at > 0 || std::string_view(detail).starts_with("RCPT failed");
    if (about_this && status >= 500 && status < 600) return {MailOutcome::Kind::kRefused, reason};
    // All of the mail went, and no answer came.
    const bool unknown = upload.at == rendered.size() && status < 400;
    return {unknown ? MailOutcome::Kind::kUnknown : MailOutcome::Kind::kTryAgain, reason};
  }

 private:
  struct Upload {
    const std::string& bytes;
    std::size_t at;
    std::chrono::steady_clock::time_point until;
    static std::size_t read(char* out, std::size_t size, std::size_t count, void* user) {
      auto& self = *static_cast<Upload*>(user);
      const std::size_t take = std::min(size * count, self.bytes.size() - self.at);
      self.bytes.copy(out, take, self.at);
      self.at += take;
      return take;
    }
    // Asked about once a second; other than 0 ends it.
    static int is_late(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
      const auto& self = *static_cast<const Upload*>(user);
      return self.at < self.bytes.size() && std::chrono::steady_clock::now() > self.until ? 1 : 0;
    }
  };
  // What the server says when it refuses (RFC 5321, section 4.2): "550-5.1.1 No such" "550
  // mailbox".
  struct Refusal {
    std::string words;
    static std::size_t on_line(char* data, std::size_t size, std::size_t count, void* user) {
      constexpr std::size_t kWordsMax = 500;
      auto& words = static_cast<Refusal*>(user)->words;
      std::string_view line(data, size * count);
      const bool refuses = line.size() >= 4 && (line[0] == '4' || line[0] == '5') &&
                           (line[3] == ' ' || line[3] == '-');
      if (!refuses) {
        words.clear();
        return size * count;
      }
      line.remove_prefix(4);
      line = line.substr(0, line.find_last_not_of("\r\n ") + 1);
      if (!words.empty()) words += ' ';
      words += line.substr(0, kWordsMax - std::min(words.size(), kWordsMax));
      return size * count;
    }
  };
  std::string url_;
  SmtpLogin login_;
  bool require_tls_;
};

}  // namespace

std::unique_ptr<MailTransport> make_mail_transport(const std::string& deliver,
                                                   const SmtpLogin& login, bool require_tls) {
  if (deliver.rfind("maildir:", 0) == 0 && deliver.size() > 8) {
    return std::make_unique<Maildir>(deliver.substr(8));
  }
  if (deliver.rfind("smtp://", 0) == 0 || deliver.rfind("smtps://", 0) == 0) {
    return std::make_unique<Smtp>(deliver, login, require_tls);
  }
  throw std::invalid_argument(
      "setting 'deliver' must be \"maildir:PATH\" or \"smtp://host:port\", not \"" + deliver +
      "\"");
}

}  // namespace shop
