// The confirmation e-mail of an order, as RFC 5322 and MIME bytes. By GMime.
//
// Threading: call initialise_mail() once before; render_mail from any thread.
#pragma once

#include <string>

#include "shop/messages.hpp"

namespace shop {

void initialise_mail();

struct MailAddress {
  std::string name;
  std::string address;
};

struct Mail {
  MailAddress from;
  MailAddress to;
  std::string message_id;  // without < and >
  std::string subject;
  std::string text;
  std::string html;
  std::int64_t date_s = 0;  // since 1970 UTC
};

Mail confirmation_mail(const OrderPlaced& order, const MailAddress& from,
                       const std::string& message_id, std::int64_t date_s);

// multipart/alternative with CRLF line ends. Throws std::invalid_argument for a header value with
// control characters.
std::string render_mail(const Mail& mail);

}  // namespace shop
