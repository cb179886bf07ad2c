// RabbitMQ driver (AMQP 0-9-1, librabbitmq, publisher confirms, persistent messages).
// extra args: --port=5672 --queue=classic|classic2|quorum --embed (n/a)
#include "harness.hpp"

#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>
static void chk(amqp_rpc_reply_t r, const char* w) {
  if (r.reply_type != AMQP_RESPONSE_NORMAL) {
    fprintf(
        stderr, "amqp %s failed type %d %s\n", w, r.reply_type,
        r.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION ? amqp_error_string2(r.library_error) : "");
    _exit(3);
  }
}
static amqp_connection_state_t conn(Ctx& c) {
  for (uint64_t t = now_ns();;) {
    amqp_connection_state_t k = amqp_new_connection();
    amqp_socket_t* s = amqp_tcp_socket_new(k);
    if (amqp_socket_open(s, "127.0.0.1", c.a->n("port", 5672)) == AMQP_STATUS_OK) {
      amqp_rpc_reply_t r =
          amqp_login(k, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest");
      if (r.reply_type == AMQP_RESPONSE_NORMAL) {
        amqp_channel_open(k, 1);
        chk(amqp_get_rpc_reply(k), "channel");
        return k;
      }
    }
    amqp_destroy_connection(k);
    if (now_ns() - t > 50000000000ull) die("connect");
    usleep(20000);
  }
}
static std::string qn(int g) {
  return "q" + std::to_string(g);
}
static void declare(Ctx& c, amqp_connection_state_t k, int g, bool passive) {
  std::string t = c.a->s("queue", "classic");
  amqp_table_entry_t e[2];
  int n = 0;
  e[n].key = amqp_cstring_bytes("x-queue-type");
  e[n].value.kind = AMQP_FIELD_KIND_UTF8;
  e[n].value.value.bytes = amqp_cstring_bytes(t == "quorum" ? "quorum" : "classic");
  n++;
  if (t == "classic2") {
    e[n].key = amqp_cstring_bytes("x-queue-version");
    e[n].value.kind = AMQP_FIELD_KIND_I32;
    e[n].value.value.i32 = 2;
    n++;
  }
  amqp_table_t tb{n, e};
  std::string q = qn(g);
  amqp_queue_declare(k, 1, amqp_cstring_bytes(q.c_str()), passive, 1, 0, 0,
                     passive ? amqp_empty_table : tb);
  chk(amqp_get_rpc_reply(k), "declare");
}
static void drv_setup(Ctx& c) {
  amqp_connection_state_t k = conn(c);
  bool drain = c.mode == "drain";
  for (int g = 0; g < c.groups; g++) {
    declare(c, k, g, drain);
    if (c.groups > 1 && !drain) {
      amqp_exchange_declare(k, 1, amqp_cstring_bytes("fan"), amqp_cstring_bytes("fanout"), 0, 1, 0,
                            0, amqp_empty_table);
      chk(amqp_get_rpc_reply(k), "ex");
      std::string q = qn(g);
      amqp_queue_bind(k, 1, amqp_cstring_bytes(q.c_str()), amqp_cstring_bytes("fan"),
                      amqp_empty_bytes, amqp_empty_table);
      chk(amqp_get_rpc_reply(k), "bind");
    }
  }
}
struct Pub {
  amqp_connection_state_t k;
  Ctx& c;
  uint64_t sent = 0, conf = 0;
  amqp_basic_properties_t p;
  amqp_bytes_t ex, rk;
  Pub(Ctx& c_) : c(c_) {
    k = conn(c);
    amqp_confirm_select(k, 1);
    chk(amqp_get_rpc_reply(k), "confirm.select");
    memset(&p, 0, sizeof p);
    p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG;
    p.delivery_mode = 2;
    ex = c.groups > 1 ? amqp_cstring_bytes("fan") : amqp_empty_bytes;
    rk = amqp_cstring_bytes("q0");
  }
  void send(long i) {
    amqp_bytes_t b{(size_t)c.size, c.msg(i)};
    int r = amqp_basic_publish(k, 1, ex, rk, 0, 0, &p, b);
    if (r) {
      fprintf(stderr, "publish %s\n", amqp_error_string2(r));
      _exit(3);
    }
    sent++;
  }
  bool frame(timeval* tv) {
    amqp_frame_t f;
    int r = amqp_simple_wait_frame_noblock(k, &f, tv);
    if (r == AMQP_STATUS_TIMEOUT) return false;
    if (r) {
      fprintf(stderr, "wait %s\n", amqp_error_string2(r));
      _exit(3);
    }
    if (f.frame_type == AMQP_FRAME_METHOD) {
      if (f.payload.method.id == AMQP_BASIC_ACK_METHOD) {
        auto* m = (amqp_basic_ack_t*)f.payload.method.decoded;
        if (m->multiple) {
          conf = std::max(conf, (uint64_t)m->delivery_tag), cnt_multi(m->delivery_tag);
        } else
          one(m->delivery_tag);
      } else if (f.payload.method.id == AMQP_BASIC_NACK_METHOD) {
        c.sh->errors++;
        outstanding--;
      } else {
        fprintf(stderr, "unexpected method %x\n", f.payload.method.id);
        _exit(3);
      }
    }
    amqp_maybe_release_buffers(k);
    return true;
  }
  // confirms may be out of order when not "multiple": keep exact count of outstanding tags
  std::vector<bool> done;
  uint64_t low = 1;
  long outstanding = 0;
  void one(uint64_t t) {
    if (done.size() <= t) done.resize(t + 65536);
    if (!done[t]) {
      done[t] = true;
      outstanding--;
    }
    while (low < done.size() && done[low]) low++;
  }
  void cnt_multi(uint64_t t) {
    if (done.size() <= t) done.resize(t + 65536);
    for (; low <= t; low++)
      if (!done[low]) {
        done[low] = true;
        outstanding--;
      }
    while (low < done.size() && done[low]) low++;
  }
  void drain_ready() {
    while (amqp_frames_enqueued(k) || amqp_data_in_buffer(k)) {
      timeval z{0, 0};
      if (!frame(&z)) break;
    }
  }
};
static void drv_producer(Ctx& c, long n, std::function<void()> barrier) {
  Pub p(c);
  barrier();
  long i = 0;
  timeval tv{1, 0};
  for (; i < n; i++) {
    if ((i & 63) == 0 && c.expired()) break;
    while (p.outstanding >= c.window && !c.expired()) {
      tv = {1, 0};
      p.frame(&tv);
      p.drain_ready();
    }
    p.send(i);
    p.outstanding++;
  }
  uint64_t end = now_ns() + 15000000000ull;
  while (p.outstanding > 0 && now_ns() < end) {
    tv = {1, 0};
    p.frame(&tv);
  }
  c.sh->fin_ns[c.slot] = now_ns();
  c.sh->confirmed += i - p.outstanding;
}
static void drv_lat(Ctx& c, long n, std::function<void()> barrier) {
  Pub p(c);
  one_by_one(
      c, n,
      [&](long i) {
        p.send(i);
        p.outstanding++;
        while (p.outstanding > 0) {
          timeval tv{5, 0};
          if (!p.frame(&tv)) die("confirm timeout");
        }
      },
      barrier);
}
static void drv_paced(Ctx& c, long n, std::function<void()> barrier) {
  Pub p(c);
  barrier();
  uint64_t t0 = now_ns();
  for (long i = 0; i < n; i++) {
    pace_until(t0 + i * 1000000000ull / c.rate);
    p.send(i);
    p.outstanding++;
    timeval z{0, 0};
    while (p.frame(&z)) z = {0, 0};
  }
  uint64_t end = now_ns() + 15000000000ull;
  while (p.outstanding > 0 && now_ns() < end) {
    timeval tv{1, 0};
    p.frame(&tv);
  }
  c.sh->confirmed += n - p.outstanding;
}
static void drv_consumer(Ctx& c, std::function<void()> barrier) {
  amqp_connection_state_t k = conn(c);
  amqp_basic_qos(k, 1, 0, c.window, 0);
  chk(amqp_get_rpc_reply(k), "qos");
  std::string q = qn(c.group);
  if (c.mode != "drain")
    barrier();  // connect + qos before the barrier, consume right after it
  else
    barrier();
  amqp_basic_consume(k, 1, amqp_cstring_bytes(q.c_str()), amqp_empty_bytes, 0, 0, 0,
                     amqp_empty_table);
  chk(amqp_get_rpc_reply(k), "consume");
  uint64_t last = now_ns();
  bool any = false;
  while (!c.group_done() && !c.expired()) {
    amqp_envelope_t e;
    amqp_maybe_release_buffers(k);
    timeval tv{0, 20000};
    amqp_rpc_reply_t r = amqp_consume_message(k, &e, &tv, 0);
    if (r.reply_type != AMQP_RESPONSE_NORMAL) {
      if (r.library_error == AMQP_STATUS_TIMEOUT) continue;
      chk(r, "consume_message");
    }
    uint64_t t = now_ns();
    int a = amqp_basic_ack(k, 1, e.delivery_tag, 0);
    if (a) {
      fprintf(stderr, "ack %s\n", amqp_error_string2(a));
      _exit(3);
    }
    c.got((char*)e.message.body.bytes, e.message.body.len, t);
    amqp_destroy_envelope(&e);
    last = now_ns();
    any = true;
  }
  // synchronous method behind the acks on the same channel: queue process has taken them
  if (any) declare(c, k, c.group, true);
  uint64_t f = now_ns();
  c.sh->fin_ns[c.slot] = last + 2000000000ull < f ? last : f;
}
