#include "shop/email/mail_message.hpp"

#include <gmime/gmime.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

namespace shop {
namespace {

template <typename T>
struct Unref {
  void operator()(T* object) const { g_object_unref(object); }
};
template <typename T>
using Object = std::unique_ptr<T, Unref<T>>;

void refuse_controls(const std::string& value, const char* what) {
  const bool bad = std::any_of(value.begin(), value.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
  });
  if (bad) throw std::invalid_argument(std::string(what) + " contains a control character");
}

std::string escape_html(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

Object<GMimePart> text_part(const char* subtype, const std::string& text) {
  Object<GMimePart> part(GMIME_PART(g_mime_text_part_new_with_subtype(subtype)));
  g_mime_text_part_set_charset(GMIME_TEXT_PART(part.get()), "utf-8");
  g_mime_text_part_set_text(GMIME_TEXT_PART(part.get()), text.c_str());
  g_mime_part_set_content_encoding(part.get(), GMIME_CONTENT_ENCODING_QUOTEDPRINTABLE);
  return part;
}

}  // namespace

void initialise_mail() {
  g_mime_init();
}

Mail confirmation_mail(const OrderPlaced& order, const MailAddress& from,
                       const std::string& message_id, std::int64_t date_s) {
  Mail mail;
  mail.from = from;
  mail.to = {order.customer, order.email};
  mail.message_id = message_id;
  mail.date_s = date_s;
  mail.subject = "Your order " + order.order_id;
  mail.text =
      "Hello " + order.customer + ",\n\nthank you for your order " + order.order_id + ".\n\n";
  mail.html = "<!doctype html><html><body><p>Hello " + escape_html(order.customer) +
              ",</p><p>thank you for your order <b>" + escape_html(order.order_id) +
              "</b>.</p><table>";
  for (const auto& line : order.lines) {
    const std::string price = money_text(line.quantity * line.unit_price, order.currency);
    mail.text += "  " + std::to_string(line.quantity) + " x " + line.name + "  " + price + "\n";
    mail.html += "<tr><td>" + std::to_string(line.quantity) + " &times; " + escape_html(line.name) +
                 "</td><td align=\"right\">" + price + "</td></tr>";
  }
  const std::string tax = money_text(order.tax(), order.currency);
  const std::string total = money_text(order.total(), order.currency);
  mail.text +=
      "\n  Tax    " + tax + "\n  Total  " + total + "\n\nThe invoice follows.\n\nThe Dray Shop\n";
  mail.html +=
      "<tr><td>Tax</td><td align=\"right\">" + tax +
      "</td></tr><tr><td><b>Total</b></td><td align=\"right\"><b>" + total +
      "</b></td></tr></table><p>The invoice follows.</p><p>The Dray Shop</p></body></html>";
  return mail;
}

std::string render_mail(const Mail& mail) {
  refuse_controls(mail.from.name, "the sender's name");
  refuse_controls(mail.from.address, "the sender's address");
  refuse_controls(mail.to.name, "the recipient's name");
  refuse_controls(mail.to.address, "the recipient's address");
  refuse_controls(mail.subject, "the subject");
  refuse_controls(mail.message_id, "the Message-ID");
  const Object<GMimeMessage> message(g_mime_message_new(TRUE));
  g_mime_message_add_mailbox(message.get(), GMIME_ADDRESS_TYPE_FROM, mail.from.name.c_str(),
                             mail.from.address.c_str());
  g_mime_message_add_mailbox(message.get(), GMIME_ADDRESS_TYPE_TO, mail.to.name.c_str(),
                             mail.to.address.c_str());
  g_mime_message_set_subject(message.get(), mail.subject.c_str(), "utf-8");
  g_mime_message_set_message_id(message.get(), mail.message_id.c_str());
  GDateTime* date = g_date_time_new_from_unix_utc(mail.date_s);
  g_mime_message_set_date(message.get(), date);
  g_date_time_unref(date);
  const Object<GMimeMultipart> parts(g_mime_multipart_new_with_subtype("alternative"));
  const auto text = text_part("plain", mail.text);
  const auto html = text_part("html", mail.html);
  g_mime_multipart_add(parts.get(), GMIME_OBJECT(text.get()));
  g_mime_multipart_add(parts.get(), GMIME_OBJECT(html.get()));
  g_mime_message_set_mime_part(message.get(), GMIME_OBJECT(parts.get()));

  GMimeFormatOptions* format = g_mime_format_options_new();
  g_mime_format_options_set_newline_format(format, GMIME_NEWLINE_FORMAT_DOS);
  const Object<GMimeStream> stream(g_mime_stream_mem_new());
  g_mime_object_write_to_stream(GMIME_OBJECT(message.get()), format, stream.get());
  g_mime_format_options_free(format);
  const GByteArray* bytes = g_mime_stream_mem_get_byte_array(GMIME_STREAM_MEM(stream.get()));
  return {reinterpret_cast<const char*>(bytes->data), bytes->len};
}

}  // namespace shop
