// The e-mail app: sends the confirmation of an order.
#include <curl/curl.h>

#include <fstream>
#include <mutex>

#include "dray/handler.hpp"
#include "dray/pipeline.hpp"
#include "shop/email/mail_message.hpp"
#include "shop/email/mail_transport.hpp"

namespace {

using namespace shop;

void initialise_once() {
  static std::once_flag once;
  std::call_once(once, [] {
    initialise_mail();
    curl_global_init(CURL_GLOBAL_DEFAULT);
  });
}

// Secrets come from files, never from the config itself.
SmtpLogin read_login(const dray::Settings& settings) {
  SmtpLogin login;
  login.user = settings.text("user", "");
  const std::string file = settings.text("password_file", "");
  if (file.empty()) return login;
  std::ifstream in(file);
  if (!std::getline(in, login.password)) {
    throw dray::SettingsError("setting 'password_file': cannot read " + file);
  }
  return login;
}

dray::IfUnknown read_if_unknown(const dray::Settings& settings) {
  const std::string choice = settings.text("if_unknown", "again");
  if (choice == "again") return dray::IfUnknown::kAgain;
  if (choice == "ask") return dray::IfUnknown::kAsk;
  throw dray::SettingsError("setting 'if_unknown' must be \"again\" or \"ask\", not \"" + choice +
                            "\"");
}

class SendConfirmation final : public dray::Handler<OrderPlaced> {
 public:
  explicit SendConfirmation(const dray::Settings& settings)
      : from_{settings.text("from_name", "The Dray Shop"),
              settings.text("from", "shop@dray.example")},
        id_domain_(settings.text("message_id_domain", "dray.example")),
        if_unknown_(read_if_unknown(settings)) {
    initialise_once();
    const auto login = read_login(settings);
    transport_ = make_mail_transport(settings.text("deliver"), login,
                                     settings.boolean("require_tls", !login.user.empty()));
    const std::string progress = settings.text("progress", "");
    if (!progress.empty()) progress_.emplace(progress);
  }

  dray::Outcome handle(const OrderPlaced& order, dray::Delivery& delivery) override {
    if (progress_) progress_->push({order.order_id, "mail-attempt"});
    // The same on every attempt, so that a mail that was sent twice is recognised as one.
    const std::string message_id = delivery.id().text() + "@" + id_domain_;
    const auto date =
        std::chrono::floor<std::chrono::seconds>(delivery.published_at()).time_since_epoch();
    std::string rendered;
    const Mail mail = confirmation_mail(order, from_, message_id, date.count());
    try {
      rendered = render_mail(mail);
    } catch (const std::invalid_argument& fault) {
      return dray::reject(fault.what());
    }
    MailOutcome outcome;
    try {
      delivery.once("send", if_unknown_, [&] {
        outcome = transport_->send(mail, rendered);
        if (outcome.kind == MailOutcome::Kind::kSent) return;
        // If this dies here, or the server did not answer, the mail may be on its way.
        if (outcome.kind == MailOutcome::Kind::kUnknown) throw std::runtime_error(outcome.reason);
        throw dray::StepNotDone(outcome.reason);
      });
    } catch (const dray::StepNotDone&) {
      const bool refused = outcome.kind == MailOutcome::Kind::kRefused;
      return refused ? dray::reject(outcome.reason) : dray::retry(outcome.reason);
    }
    return dray::done().publish(kMailSent, MailSent{order.order_id, message_id});
  }

 private:
  MailAddress from_;
  std::string id_domain_;
  dray::IfUnknown if_unknown_;
  std::unique_ptr<MailTransport> transport_;
  std::optional<dray::Push<Progress>> progress_;
};

}  // namespace

DRAY_PLUGIN(dray::handler<SendConfirmation>("send-confirmation"))
