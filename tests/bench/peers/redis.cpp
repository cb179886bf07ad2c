// Redis streams driver (hiredis pipelining: XADD / XREADGROUP / XACK [+ XDEL]).
// extra args: --port=6379 --xdel=0|1 (delete the entry with its ack: work-queue semantics; 0 = XACK
// only, stream keeps growing) --batch=N (XREADGROUP COUNT, default 500)
#include "harness.hpp"

#include <hiredis/hiredis.h>
static redisContext* conn(Ctx& c) {
  for (uint64_t t = now_ns();; usleep(10000)) {
    timeval tv{5, 0};
    redisContext* r = redisConnectWithTimeout("127.0.0.1", c.a->n("port", 6379), tv);
    if (r && !r->err) {
      redisReply* p = (redisReply*)redisCommand(r, "PING");
      if (p && p->type == REDIS_REPLY_STATUS) {
        freeReplyObject(p);
        timeval t2{60, 0};
        redisSetTimeout(r, t2);
        return r;
      }
      if (p) freeReplyObject(p);
    }
    if (r) redisFree(r);
    if (now_ns() - t > 50000000000ull) die("connect");
  }
}
static void ok(redisContext* r, redisReply* p, const char* w) {
  if (!p) {
    fprintf(stderr, "%s: %s\n", w, r->errstr);
    _exit(3);
  }
  if (p->type == REDIS_REPLY_ERROR && strncmp(p->str, "BUSYGROUP", 9)) {
    fprintf(stderr, "%s: %s\n", w, p->str);
    _exit(3);
  }
  freeReplyObject(p);
}
static void drv_setup(Ctx& c) {
  redisContext* r = conn(c);
  if (c.mode == "drain") {
    for (int g = 0; g < c.groups; g++)
      ok(r, (redisReply*)redisCommand(r, "XGROUP CREATE q g%d 0 MKSTREAM", g), "xgroup");
    redisFree(r);
    return;
  }
  ok(r, (redisReply*)redisCommand(r, "DEL q"), "del");
  for (int g = 0; g < c.groups && c.consumers; g++)
    ok(r, (redisReply*)redisCommand(r, "XGROUP CREATE q g%d 0 MKSTREAM", g), "xgroup");
  redisFree(r);
}
static void xadd(redisContext* r, Ctx& c, long i) {
  const char* av[] = {"XADD", "q", "*", "d", c.msg(i)};
  size_t al[] = {4, 1, 1, 1, (size_t)c.size};
  redisAppendCommandArgv(r, 5, av, al);
}
static void take(redisContext* r, Ctx& c, redisReply* p) {
  if (!p) {
    fprintf(stderr, "reply: %s\n", r->errstr);
    _exit(3);
  }
  if (p->type == REDIS_REPLY_ERROR) {
    c.sh->errors++;
    fprintf(stderr, "%s\n", p->str);
  }
  freeReplyObject(p);
}
static void drv_producer(Ctx& c, long n, std::function<void()> barrier) {
  redisContext* r = conn(c);
  barrier();
  long i = 0, out = 0;
  void* p;
  while (i < n && !c.expired()) {
    while (out < c.window && i < n) {
      xadd(r, c, i++);
      out++;
    }
    if (redisGetReply(r, &p)) {
      fprintf(stderr, "%s\n", r->errstr);
      _exit(3);
    }
    take(r, c, (redisReply*)p);
    out--;
    while (redisGetReplyFromReader(r, &p) == REDIS_OK && p) {
      take(r, c, (redisReply*)p);
      out--;
    }
  }
  while (out > 0) {
    if (redisGetReply(r, &p)) {
      fprintf(stderr, "%s\n", r->errstr);
      _exit(3);
    }
    take(r, c, (redisReply*)p);
    out--;
  }
  c.sh->fin_ns[c.slot] = now_ns();
  c.sh->confirmed += i;
}
static void drv_lat(Ctx& c, long n, std::function<void()> barrier) {
  redisContext* r = conn(c);
  void* p;
  auto one = [&](long i) {
    xadd(r, c, i);
    if (redisGetReply(r, &p)) die("reply");
    take(r, c, (redisReply*)p);
  };
  one_by_one(c, n, one, barrier);
}
#include <poll.h>
static void drv_paced(Ctx& c, long n, std::function<void()> barrier) {
  redisContext* r = conn(c);
  barrier();
  uint64_t t0 = now_ns();
  long out = 0;
  void* p;
  int done = 0;
  for (long i = 0; i < n; i++) {
    pace_until(t0 + i * 1000000000ull / c.rate);
    xadd(r, c, i);
    out++;
    do {
      if (redisBufferWrite(r, &done)) die("write");
    } while (!done);
    pollfd f{r->fd, POLLIN, 0};
    if (poll(&f, 1, 0) > 0) {
      if (redisBufferRead(r)) die("read");
      while (redisGetReplyFromReader(r, &p) == REDIS_OK && p) {
        take(r, c, (redisReply*)p);
        out--;
      }
    }
  }
  while (out > 0) {
    if (redisGetReply(r, &p)) die("reply");
    take(r, c, (redisReply*)p);
    out--;
  }
  c.sh->confirmed += n;
}
static void drv_consumer(Ctx& c, std::function<void()> barrier) {
  redisContext* r = conn(c);
  barrier();
  long batch = c.a->n("batch", 500);
  bool xdel = c.a->n("xdel", 1);
  uint64_t last = now_ns();
  std::string g = "g" + std::to_string(c.group), cn = "c" + std::to_string(c.cons_idx),
              bt = std::to_string(batch);
  if (c.groups > 1) xdel = false;  // entry must stay for the other group
  redisReply* pend = nullptr;
  uint64_t pt = 0;
  void* vp;
  while (!c.group_done() && !c.expired()) {
    size_t nack = 0;
    redisReply* ents = nullptr;
    if (pend && pend->type == REDIS_REPLY_ARRAY && pend->elements)
      ents = pend->element[0]->element[1];
    if (ents)
      for (size_t i = 0; i < ents->elements; i++) {
        redisReply* id = ents->element[i]->element[0];
        const char* av[] = {"XACK", "q", g.c_str(), id->str};
        size_t al[] = {4, 1, g.size(), (size_t)id->len};
        redisAppendCommandArgv(r, 4, av, al);
        nack++;
        if (xdel) {
          const char* dv[] = {"XDEL", "q", id->str};
          size_t dl[] = {4, 1, (size_t)id->len};
          redisAppendCommandArgv(r, 3, dv, dl);
        }
      }
    bool lastb = ents && c.sh->acked[c.group] + nack >= (uint64_t)c.count;
    if (!lastb) {
      const char* av[] = {"XREADGROUP", "GROUP", g.c_str(), cn.c_str(), "COUNT", bt.c_str(),
                          "BLOCK",      "50",    "STREAMS", "q",        ">"};
      redisAppendCommandArgv(r, 11, av, nullptr);
    }
    if (ents)
      for (size_t i = 0; i < ents->elements; i++) {
        if (redisGetReply(r, &vp)) {
          fprintf(stderr, "%s\n", r->errstr);
          _exit(3);
        }
        take(r, c, (redisReply*)vp);
        if (xdel) {
          if (redisGetReply(r, &vp)) die("xdel");
          take(r, c, (redisReply*)vp);
        }
        redisReply* kv = ents->element[i]->element[1];
        c.got(kv->element[1]->str, kv->element[1]->len, pt);
        last = now_ns();
      }
    if (pend) freeReplyObject(pend);
    pend = nullptr;
    if (!lastb) {
      if (redisGetReply(r, &vp)) {
        fprintf(stderr, "xreadgroup %s\n", r->errstr);
        _exit(3);
      }
      pend = (redisReply*)vp;
      pt = now_ns();
      if (pend->type == REDIS_REPLY_ERROR) {
        fprintf(stderr, "%s\n", pend->str);
        _exit(3);
      }
    }
  }
  c.sh->fin_ns[c.slot] = last;
}
