// NATS JetStream (file store) driver, C client libnats.
// extra args: --url=nats://127.0.0.1:4222 --retention=workqueue|limits|interest
// --consumer=push|pull --batch=N (pull) --sendasap=0|1
#include "harness.hpp"

#include <nats/nats.h>
#define NC(x)                                                                            \
  do {                                                                                   \
    natsStatus s_ = (x);                                                                 \
    if (s_ != NATS_OK) {                                                                 \
      fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, natsStatus_GetText(s_)); \
      nats_PrintLastErrorStack(stderr);                                                  \
      _exit(3);                                                                          \
    }                                                                                    \
  } while (0)
struct N {
  natsConnection* nc = nullptr;
  jsCtx* js = nullptr;
};
static void on_err(jsCtx*, jsPubAckErr*, void* cl) {
  ((Ctx*)cl)->sh->errors++;
}
static N conn(Ctx& c, bool asap) {
  N n;
  natsOptions* o;
  NC(natsOptions_Create(&o));
  std::string u = c.a->s("url", "nats://127.0.0.1:4222");
  NC(natsOptions_SetURL(o, u.c_str()));
  natsOptions_SetSendAsap(o, asap);
  natsOptions_SetMaxPendingMsgs(o, 2000000);
  natsStatus s = NATS_ERR;
  for (uint64_t t = now_ns(); now_ns() - t < 40000000000ull; usleep(20000)) {
    s = natsConnection_Connect(&n.nc, o);
    if (s == NATS_OK) break;
  }
  NC(s);
  jsOptions jo;
  jsOptions_Init(&jo);
  jo.Wait = 10000;
  jo.PublishAsync.MaxPending = c.window;
  jo.PublishAsync.StallWait = 30000;
  jo.PublishAsync.ErrHandler = on_err;
  jo.PublishAsync.ErrHandlerClosure = &c;
  NC(natsConnection_JetStream(&n.js, n.nc, &jo));
  natsOptions_Destroy(o);
  return n;
}
static std::string gname(int g) {
  return "g" + std::to_string(g);
}
static void add_consumers(Ctx& c, N& n) {
  bool push = c.a->s("consumer", "push") == "push";
  for (int g = 0; g < c.groups; g++) {
    jsConsumerConfig cc;
    jsConsumerConfig_Init(&cc);
    std::string d = gname(g), ds = "dlv." + d;
    cc.Durable = d.c_str();
    cc.AckPolicy = js_AckExplicit;
    cc.DeliverPolicy = js_DeliverAll;
    cc.AckWait = 60000000000LL;
    cc.MaxAckPending = c.window;
    if (push) {
      cc.DeliverSubject = ds.c_str();
      cc.DeliverGroup = d.c_str();
    }
    jsErrCode e;
    NC(js_AddConsumer(nullptr, n.js, "Q", &cc, nullptr, &e));
  }
}
static void drv_setup(Ctx& c) {
  if (c.mode == "drain") return;  // stream exists
  N n = conn(c, false);
  jsErrCode e;
  js_DeleteStream(n.js, "Q", nullptr, &e);
  jsStreamConfig sc;
  jsStreamConfig_Init(&sc);
  const char* subj[] = {"q"};
  sc.Name = "Q";
  sc.Subjects = subj;
  sc.SubjectsLen = 1;
  sc.Storage = js_FileStorage;
  std::string r = c.a->s("retention", "workqueue");
  sc.Retention = r == "limits"     ? js_LimitsPolicy
                 : r == "interest" ? js_InterestPolicy
                                   : js_WorkQueuePolicy;
  NC(js_AddStream(nullptr, n.js, &sc, nullptr, &e));
  if (c.consumers) add_consumers(c, n);
}
static void drv_producer(Ctx& c, long cnt, std::function<void()> barrier) {
  N n = conn(c, false);
  barrier();
  long i = 0;
  for (; i < cnt; i++) {
    if ((i & 255) == 0 && c.expired()) break;
    NC(js_PublishAsync(n.js, "q", c.msg(i), c.size, nullptr));
  }
  jsPubOptions po;
  jsPubOptions_Init(&po);
  po.MaxWait = 30000;
  natsStatus s = js_PublishAsyncComplete(n.js, &po);
  if (s != NATS_OK) c.sh->errors++;
  c.sh->fin_ns[c.slot] = now_ns();
  c.sh->confirmed += i;
}
static void drv_lat(Ctx& c, long cnt, std::function<void()> barrier) {
  N n = conn(c, c.a->n("sendasap", 1));
  one_by_one(
      c, cnt,
      [&](long i) { NC(js_Publish(nullptr, n.js, "q", c.msg(i), c.size, nullptr, nullptr)); },
      barrier);
}
static void drv_paced(Ctx& c, long cnt, std::function<void()> barrier) {
  N n = conn(c, c.a->n("sendasap", 1));
  barrier();
  uint64_t t0 = now_ns();
  for (long i = 0; i < cnt; i++) {
    pace_until(t0 + i * 1000000000ull / c.rate);
    NC(js_PublishAsync(n.js, "q", c.msg(i), c.size, nullptr));
  }
  jsPubOptions po;
  jsPubOptions_Init(&po);
  po.MaxWait = 30000;
  if (js_PublishAsyncComplete(n.js, &po) != NATS_OK) c.sh->errors++;
  c.sh->confirmed += cnt;
}
static void drv_consumer(Ctx& c, std::function<void()> barrier) {
  bool asap = c.mode == "e2elat" && c.a->n("sendasap", 1),
       push = c.a->s("consumer", "push") == "push";
  N n = conn(c, asap);
  jsErrCode e;
  natsSubscription* sub = nullptr;
  std::string g = gname(c.group);
  if (c.mode == "drain" && c.cons_idx == 0) add_consumers(c, n);
  jsSubOptions so;
  jsSubOptions_Init(&so);
  so.Stream = "Q";
  so.Consumer = g.c_str();
  so.ManualAck = true;
  if (push) {
    so.Queue = g.c_str();
    NC(js_SubscribeSync(&sub, n.js, "q", nullptr, &so, &e));
    natsSubscription_SetPendingLimits(sub, -1, -1);
  } else
    NC(js_PullSubscribe(&sub, n.js, "q", g.c_str(), nullptr, &so, &e));
  barrier();
  long batch = c.a->n("batch", 200);
  uint64_t last = now_ns();
  while (!c.group_done() && !c.expired()) {
    if (push) {
      natsMsg* m;
      natsStatus s = natsSubscription_NextMsg(&m, sub, 20);
      if (s == NATS_TIMEOUT) continue;
      NC(s);
      uint64_t t = now_ns();
      NC(natsMsg_Ack(m, nullptr));
      c.got(natsMsg_GetData(m), natsMsg_GetDataLength(m), t);
      natsMsg_Destroy(m);
      last = now_ns();
    } else {
      natsMsgList l;
      memset(&l, 0, sizeof l);
      natsStatus s = natsSubscription_Fetch(&l, sub, batch, c.mode == "e2elat" ? 20 : 50, &e);
      if (s != NATS_OK && s != NATS_TIMEOUT) NC(s);
      uint64_t t = now_ns();
      for (int i = 0; i < l.Count; i++) {
        NC(natsMsg_Ack(l.Msgs[i], nullptr));
        c.got(natsMsg_GetData(l.Msgs[i]), natsMsg_GetDataLength(l.Msgs[i]), t);
        last = now_ns();
      }
      natsMsgList_Destroy(&l);
    }
  }
  natsConnection_Flush(n.nc);
  uint64_t f = now_ns();
  c.sh->fin_ns[c.slot] = c.group_done() && last + 1000000000ull < f
                             ? last
                             : f;  // PING/PONG: server has read every ack
}
