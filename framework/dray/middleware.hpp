// Middleware: what is done around every handling, in one place.
//
//   class Audit final : public dray::Middleware {
//     dray::Outcome around(dray::Delivery& delivery, const dray::Next& next) override {
//       auto outcome = next();  // the next middleware, at last the handler; need not be called
//       ...
//       return outcome;
//     }
//   };
//   DRAY_PLUGIN(dray::handler<SendConfirmation, Audit, dray::LogHandling>("send-confirmation"))
//
// The first one named is the outermost. Made like a handler: with (Settings, Log), (Settings) or
// nothing; one object per handler thread.
//
// Threading, failure: as a handler. An exception passes through, and ends as the handler says
// (RawHandler::on_exception).
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "dray/export.hpp"
#include "dray/outcome.hpp"

namespace dray {

class Delivery;
class Middleware;
class RawHandler;

// What comes behind a middleware. Call it at most once.
class DRAY_API Next {
 public:
  Next(std::span<const std::unique_ptr<Middleware>> rest, RawHandler& handler,
       std::string_view body, Delivery& delivery)
      : rest_(rest), handler_(handler), body_(body), delivery_(delivery) {}
  Outcome operator()() const;

 private:
  std::span<const std::unique_ptr<Middleware>> rest_;
  RawHandler& handler_;
  std::string_view body_;
  Delivery& delivery_;
};

class DRAY_API Middleware {
 public:
  virtual ~Middleware() = default;
  virtual Outcome around(Delivery& delivery, const Next& next) = 0;
};

// A line for each handling: what came of it, and how long it took. Failures are warnings, the
// others are informational.
class DRAY_API LogHandling final : public Middleware {
 public:
  Outcome around(Delivery& delivery, const Next& next) override;
};

}  // namespace dray
