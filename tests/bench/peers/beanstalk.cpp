// beanstalkd driver: own pipelining socket client.
// extra args: --port=11300 --batch=N (consumer pipelining depth, default 200)   groups>1: no native
// fan-out, producer puts into every group's tube
#include "harness.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
struct Cn {
  int fd;
  std::string out;
  std::vector<char> in;
  size_t ip = 0, il = 0;
  Cn(Ctx& c) {
    in.resize(1 << 20);
    for (uint64_t t = now_ns();; usleep(10000)) {
      fd = socket(AF_INET, SOCK_STREAM, 0);
      sockaddr_in a{};
      a.sin_family = AF_INET;
      a.sin_port = htons(c.a->n("port", 11300));
      a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      if (!connect(fd, (sockaddr*)&a, sizeof a)) break;
      close(fd);
      if (now_ns() - t > 50000000000ull) die("connect");
    }
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
  }
  // write what can be written; read what is there; block (up to ms) until either a complete reply
  // may be present
  void pump(int ms) {  // flush out, fill in
    for (;;) {
      if (!out.empty()) {
        ssize_t w = ::write(fd, out.data(), out.size());
        if (w > 0)
          out.erase(0, w);
        else if (w < 0 && errno != EAGAIN)
          die("write");
      }
      if (ip == il)
        ip = il = 0;
      else if (il == in.size()) {
        memmove(&in[0], &in[ip], il - ip);
        il -= ip;
        ip = 0;
        if (il == in.size()) in.resize(in.size() * 2);
      }
      ssize_t r = ::read(fd, &in[il], in.size() - il);
      if (r > 0) {
        il += r;
        return;
      }
      if (r == 0) die("eof");
      if (errno != EAGAIN) die("read");
      if (!ms) {
        return;
      }
      pollfd p{fd, short(POLLIN | (out.empty() ? 0 : POLLOUT)), 0};
      int k = poll(&p, 1, ms);
      if (k == 0) return;
    }
  }
  bool line(std::string& l) {
    char *b = &in[0] + ip, *e = (char*)memchr(b, '\n', il - ip);
    if (!e) return false;
    l.assign(b, e - b - 1);
    ip += e - b + 1;
    return true;
  }
  bool need(size_t n) { return il - ip >= n; }
  std::string rpc(const std::string& cmd) {
    out += cmd;
    std::string l;
    while (!line(l)) pump(5000);
    return l;
  }
};
static std::string tube(int g) {
  return "t" + std::to_string(g);
}
static void drv_setup(Ctx& c) {
  Cn k(c);
}
static void putcmd(Cn& k, Ctx& c, long i) {
  char h[64];
  int n = snprintf(h, sizeof h, "put 0 0 120 %ld\r\n", c.size);
  k.out.append(h, n);
  k.out.append(c.msg(i), c.size);
  k.out.append("\r\n", 2);
}
struct Pub {
  Ctx& c;
  std::vector<Cn> k;
  std::vector<long> outst;
  Pub(Ctx& c_) : c(c_) {
    for (int g = 0; g < c.groups; g++) {
      k.emplace_back(c);
      k.back().rpc("use " + tube(g) + "\r\n");
      outst.push_back(0);
    }
  }
  void take(int g) {
    std::string l;
    while (k[g].line(l)) {
      if (l.compare(0, 8, "INSERTED")) {
        c.sh->errors++;
        fprintf(stderr, "put reply: %s\n", l.c_str());
      }
      outst[g]--;
    }
  }
};
static void drv_producer(Ctx& c, long n, std::function<void()> barrier) {
  Pub p(c);
  barrier();
  long i = 0;
  int G = c.groups;
  while (i < n && !c.expired()) {
    long room = c.window;
    for (int g = 0; g < G; g++) room = std::min(room, c.window - p.outst[g]);
    if (room < std::min<long>((c.window + 3) / 4,
                              n - i)) {  // refill the window in quarters: fewer, larger writes
      for (int g = 0; g < G; g++) {
        if (p.outst[g] > 0) p.k[g].pump(G > 1 ? 1 : 1000);
        p.take(g);
      }
      continue;
    }
    for (long j = 0; j < room && i < n; j++, i++)
      for (int g = 0; g < G; g++) {
        putcmd(p.k[g], c, i);
        p.outst[g]++;
      }
    for (int g = 0; g < G; g++) {
      p.k[g].pump(0);
      p.take(g);
    }
  }
  for (int g = 0; g < G; g++)
    while (p.outst[g] > 0) {
      p.k[g].pump(1000);
      p.take(g);
    }
  c.sh->fin_ns[c.slot] = now_ns();
  c.sh->confirmed += i;
}
static void drv_lat(Ctx& c, long n, std::function<void()> barrier) {
  Cn k(c);
  k.rpc("use t0\r\n");
  auto one = [&](long i) {
    putcmd(k, c, i);
    std::string l;
    while (!k.line(l)) k.pump(5000);
  };
  one_by_one(c, n, one, barrier);
}
static void drv_paced(Ctx& c, long n, std::function<void()> barrier) {
  Pub p(c);
  barrier();
  uint64_t t0 = now_ns();
  for (long i = 0; i < n; i++) {
    pace_until(t0 + i * 1000000000ull / c.rate);
    for (int g = 0; g < c.groups; g++) {
      putcmd(p.k[g], c, i);
      p.outst[g]++;
      p.k[g].pump(0);
      p.take(g);
    }
  }
  for (int g = 0; g < c.groups; g++)
    while (p.outst[g] > 0) {
      p.k[g].pump(1000);
      p.take(g);
    }
  c.sh->confirmed += n;
}
static void drv_consumer(Ctx& c, std::function<void()> barrier) {
  Cn k(c);
  k.rpc("watch " + tube(c.group) + "\r\n");
  k.rpc("ignore default\r\n");
  barrier();
  long batch = c.a->n("batch", 200);
  uint64_t last = now_ns();
  if (c.mode == "e2elat") batch = 1;
  bool idle = true;
  std::string l;
  struct M {
    std::string d;
    uint64_t t;
  };
  std::vector<M> ms;
  uint64_t b = 0;
  while (!c.group_done() && !c.expired()) {
    // round: [deletes of the last batch were appended] + reserves; wait for all their replies
    long nres = idle ? 1 : batch, ndel = ms.size();
    if (idle)
      k.out += "reserve-with-timeout 1\r\n";
    else
      for (long i = 0; i < nres; i++) k.out += "reserve-with-timeout 0\r\n";
    for (long i = 0; i < ndel; i++) {
      while (!k.line(l)) k.pump(5000);
      if (l != "DELETED") {
        c.sh->errors++;
        fprintf(stderr, "delete: %s\n", l.c_str());
      } else {
        c.got(ms[i].d.data(), ms[i].d.size(), ms[i].t);
        last = now_ns();
      }
    }
    ms.clear();
    for (long i = 0; i < nres; i++) {
      while (!k.line(l)) k.pump(5000);
      if (!l.compare(0, 8, "RESERVED")) {
        unsigned long id, sz;
        sscanf(l.c_str() + 9, "%lu %lu", &id, &sz);
        while (!k.need(sz + 2)) k.pump(5000);
        ms.push_back({std::string(&k.in[0] + k.ip, sz), now_ns()});
        k.ip += sz + 2;
        k.out += "delete " + std::to_string(id) + "\r\n";
      } else if (l != "TIMED_OUT" && l != "DEADLINE_SOON") {
        fprintf(stderr, "reserve: %s\n", l.c_str());
        c.sh->errors++;
      }
    }
    idle = ms.empty() || batch == 1;
    if (batch == 1 && ms.size()) {
      while (!k.line(l)) k.pump(5000);
      if (l != "DELETED") c.sh->errors++;
      c.got(ms[0].d.data(), ms[0].d.size(), ms[0].t);
      last = now_ns();
      ms.clear();
    }
    // last batch: make sure its deletes are answered
    if (ms.size() && c.sh->acked[c.group] + ms.size() >= (uint64_t)c.count) {
      size_t m = ms.size();
      for (size_t i = 0; i < m; i++) {
        while (!k.line(l)) k.pump(5000);
        if (l != "DELETED") c.sh->errors++;
        c.got(ms[i].d.data(), ms[i].d.size(), ms[i].t);
        last = now_ns();
      }
      ms.clear();
    }
  }
  (void)b;
  c.sh->fin_ns[c.slot] = last;
}
