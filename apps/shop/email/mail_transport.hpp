// Where e-mails go: a maildir, or an SMTP server by libcurl.
//
// Threading: one object, one thread. Failure: a Delivery says whether to try again (SMTP 4xx,
// network), never (SMTP 5xx), or that nobody knows (the connection broke before the server said
// that it has the mail).
#pragma once

#include <memory>
#include <string>

#include "shop/email/mail_message.hpp"

namespace shop {

struct MailOutcome {
  enum class Kind { kSent, kTryAgain, kRefused, kUnknown };
  Kind kind = Kind::kSent;
  std::string reason;
};

class MailTransport {
 public:
  virtual ~MailTransport() = default;
  virtual MailOutcome send(const Mail& mail, const std::string& rendered) = 0;
};

struct SmtpLogin {
  std::string user;
  std::string password;
};

// "maildir:PATH", "smtp://host:port" (STARTTLS if offered), "smtps://host:port". Throws
// std::invalid_argument for others.
std::unique_ptr<MailTransport> make_mail_transport(const std::string& deliver,
                                                   const SmtpLogin& login, bool require_tls);

}  // namespace shop
