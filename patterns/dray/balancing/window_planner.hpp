// WindowPlanner: how much of a worker's room each dispatcher may fill. Pure.
//
// Room is what a worker wants to have at hand: one delivery for each handler thread, and so many
// more that no thread waits for the wire. That depends on how long the handler takes, which the
// planner learns: jobs of seconds get hardly more than the threads, jobs of microseconds thousands.
// How much is taken ahead goes by the mean; but if a delivery would wait long behind what runs,
// less is: with a few long jobs among many short ones (mean 6 ms, some of a second) nothing, for it
// might be stuck here while another worker is idle. Of service times S the mean wait behind a
// running job is E[S^2] / 2 E[S] (the residual life of renewal theory; Kleinrock, Queueing Systems
// I, 5.2).
//
// Room is shared over dispatchers in one of two ways:
//   fine    a few slots. Each free slot is offered to one dispatcher that has something waiting,
//           drawn; slots that nobody waits for are offered to all.
//   coarse  thousands. Each busy dispatcher has a share by what waits there, said now and then.
// Half of it goes by what waits, half equally to all that wait: a flood on one dispatcher does not
// starve another.
//
// A window is an absolute cap on unanswered deliveries: those held, and those offered. 0 says that
// there is no room now; the dispatcher says BACKLOG when something waits, and gets a window again.
//
// Threading: one thread. Failure: none.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "dray/clock.hpp"

namespace dray::balancing {

struct WindowOptions {
  std::uint32_t threads = 1;
  std::uint32_t window_max = 8'192;            // deliveries over all links
  std::uint64_t window_bytes_max = 64U << 20;  // of envelopes, over all links
  // How much work may lie ready for each thread, if a round trip does not take longer.
  std::chrono::nanoseconds queue_target = std::chrono::milliseconds(2);
  std::uint64_t seed = 1;   // of the drawing
  std::uint32_t fixed = 0;  // room, instead of what is learnt; 0: learnt
};

class WindowPlanner {
 public:
  // What is known of one dispatcher. The owner keeps the fields up to date.
  struct Link {
    bool open = false;          // welcomed, and to be served
    std::uint32_t held = 0;     // deliveries that are not answered
    std::uint64_t waiting = 0;  // what it last said that waits there
    std::uint32_t said = 0;     // the window it was told last
    bool closed = false;        // it sends nothing before it hears of a window again
    SteadyTime active_at{};     // when it last delivered something

    // The planner's own.
    std::uint32_t offered = 0;  // slots for it alone
    SteadyTime said_at{};
  };

  explicit WindowPlanner(const WindowOptions& options);

  // So many jobs ended, which took so long in all; of several the spread is not known. REQUIRES:
  // jobs > 0.
  void on_outcomes(std::uint64_t jobs, std::chrono::nanoseconds took);
  // Nothing ended for so long.
  void on_stall(std::chrono::nanoseconds elapsed);
  // From an offer to a dispatcher with something waiting to its delivery.
  void on_round_trip(std::chrono::nanoseconds took);

  // Deliveries that the worker wants at hand in all, window_max at most. If something waits
  // somewhere, it is a little more: nothing is lost by taking it ahead.
  std::uint32_t room(bool something_waits) const;
  // Few enough that each slot counts: what finds none is better off elsewhere.
  bool is_fine() const { return fine_; }
  // How many jobs take little enough together that a thread may have them to itself.
  std::uint32_t jobs_at_once() const;
  // They are so short that the outcome of one may wait for those of some more.
  bool tells_together() const;

  // One window to be said: to links[link].
  struct Said {
    std::size_t link = 0;
    std::uint32_t messages = 0;
    std::uint64_t bytes = 0;
    // A window that shrinks must arrive before the results whose credit would fill it; one that
    // grows, or opens, behind them: what they give back closes it.
    bool before_results = false;
  };
  // What is to be said now; notes it as said.
  std::vector<Said> plan(std::vector<Link>& links, SteadyTime now);
  // For a HELLO: notes it as said too.
  Said hello(std::vector<Link>& links, std::size_t link, SteadyTime now);

 private:
  std::uint32_t free_slots(const std::vector<Link>& links) const;
  void share_slots(std::vector<Link>& links);
  void choose_recent(const std::vector<Link>& links);
  void draw_slots(std::vector<Link>& links, std::uint64_t slots);
  void share_room(std::vector<Link>& links, SteadyTime now);
  double idle_room(std::size_t idle) const;
  bool worth_saying(const Link& link, std::uint32_t wanted, bool recent, SteadyTime now) const;
  std::uint64_t bytes_of(std::uint32_t window) const;
  void update_regime();

  const WindowOptions options_;
  double mean_ = -1;        // seconds, smoothed; -1: not known
  double mean_slow_ = 0;    // the same, over more jobs
  double mean_square_ = 0;  // seconds squared, over as many
  double round_trip_ = 0;   // seconds, smoothed
  std::uint64_t outcomes_ = 0;
  bool fine_ = true;
  std::uint32_t common_ = 0;  // slots that are offered to all
  std::vector<std::uint32_t> wanted_;
  std::vector<bool> recent_;
  std::vector<std::size_t> order_;
  std::vector<double> weights_;
  std::mt19937_64 random_;
};

}  // namespace dray::balancing
