// The harness of all peer drivers: options, processes, what is counted, the JSON line.
//
//   --mode=pub|e2e|lat|e2elat  --size=B --count=N --window=N --groups=N --rate=N --seconds=N
//   --max-s=S --server-pid=P (its CPU and memory are reported)
//
// A driver implements the functions named drv_*. Producers and consumers are processes of their
// own.
#pragma once
// Parent forks producer and consumer PROCESSES; shared memory carries the barrier, counters,
// samples.
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

static inline uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000ull + t.tv_nsec;
}
static inline double self_cpu() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}
[[noreturn]] static void die(const char* what) {
  fprintf(stderr, "FATAL: %s (errno %d %s)\n", what, errno, strerror(errno));
  _exit(3);
}

struct Args {
  std::map<std::string, std::string> kv;
  Args(int argc, char** argv) {
    for (int i = 1; i < argc; i++) {
      std::string a = argv[i];
      if (a.rfind("--", 0)) {
        fprintf(stderr, "bad arg %s\n", argv[i]);
        exit(2);
      }
      auto e = a.find('=');
      if (e == std::string::npos)
        kv[a.substr(2)] = "1";
      else
        kv[a.substr(2, e - 2)] = a.substr(e + 1);
    }
  }
  std::string s(const char* k, const char* d) const {
    auto i = kv.find(k);
    return i == kv.end() ? d : i->second;
  }
  long n(const char* k, long d) const {
    auto i = kv.find(k);
    return i == kv.end() ? d : atol(i->second.c_str());
  }
};

struct ProcStat {
  double cpu = 0;
  long rss_kb = 0;
  double write_bytes = 0, wchar_ = 0, syscw = 0;
};
static ProcStat proc_stat(long pid) {
  ProcStat r;
  if (pid <= 0) return r;
  char p[64], buf[4096];
  snprintf(p, sizeof p, "/proc/%ld/stat", pid);
  if (FILE* f = fopen(p, "r")) {
    size_t n = fread(buf, 1, sizeof buf - 1, f);
    buf[n] = 0;
    fclose(f);
    if (char* q = strrchr(buf, ')')) {
      unsigned long ut, st;
      long cut, cst;
      if (sscanf(q + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %ld %ld", &ut, &st,
                 &cut, &cst) == 4)
        r.cpu = double(ut + st + cut + cst) / sysconf(_SC_CLK_TCK);
    }
  }
  snprintf(p, sizeof p, "/proc/%ld/status", pid);
  if (FILE* f = fopen(p, "r")) {
    while (fgets(buf, sizeof buf, f))
      if (!strncmp(buf, "VmRSS:", 6)) r.rss_kb = atol(buf + 6);
    fclose(f);
  }
  snprintf(p, sizeof p, "/proc/%ld/io", pid);
  if (FILE* f = fopen(p, "r")) {
    while (fgets(buf, sizeof buf, f)) {
      if (!strncmp(buf, "write_bytes:", 12)) r.write_bytes = atof(buf + 12);
      if (!strncmp(buf, "wchar:", 6)) r.wchar_ = atof(buf + 6);
      if (!strncmp(buf, "syscw:", 6)) r.syscw = atof(buf + 6);
    }
    fclose(f);
  }
  return r;
}

static const int MAXP = 16, MAXG = 4;
struct Shared {
  std::atomic<int> ready, go, stop, prod_left;
  std::atomic<uint64_t> confirmed, errors;
  std::atomic<uint64_t> acked[MAXG], uniq[MAXG], dups[MAXG];
  uint64_t fin_ns[MAXP], first_ns[MAXP];
  double cpu[MAXP];
  std::atomic<uint64_t> nlat;
  uint64_t go_ns;
};
struct Ctx {
  Args* a;
  Shared* sh;
  uint8_t* seen;
  uint32_t* lat;
  uint64_t lat_cap;
  std::string mode;
  long size, count, window, producers, consumers, groups, rate;
  double max_s;
  int slot = 0, prod_idx = 0, group = 0, cons_idx = 0;
  uint64_t deadline = 0;
  std::vector<char> payload;
  uint64_t seq_base = 0;
  bool expired() const { return now_ns() > deadline; }
  // payload: [0..8) send time ns, [8..16) global sequence number, rest random bytes that differ
  // from message to message (incompressible)
  std::vector<char> pool;
  char* msg(uint64_t i) {
    uint64_t t = now_ns(), s = seq_base + i;
    if (pool.empty()) {
      pool.resize((1 << 20) + size);
      uint64_t x = 88172645463325252ull;
      for (auto& b : pool) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        b = char(x >> 32);
      }
    }
    memcpy(&payload[0], &pool[(s * 4093) & ((1 << 20) - 1)], size);
    memcpy(&payload[0], &t, 8);
    memcpy(&payload[8], &s, 8);
    return payload.data();
  }
  // consumer side: account one message after it was acked
  void got(const char* d, size_t len, uint64_t recv_ns) {
    if (len < 16) {
      sh->errors++;
      return;
    }
    uint64_t t, s;
    memcpy(&t, d, 8);
    memcpy(&s, d + 8, 8);
    if (!sh->first_ns[slot]) sh->first_ns[slot] = recv_ns;
    if (mode == "e2elat") {
      uint64_t k = sh->nlat++;
      if (k < lat_cap) lat[k] = uint32_t(std::min<uint64_t>(recv_ns - t, 0xffffffffu));
    }
    if (s < (uint64_t)count) {
      uint8_t bit = 1 << group;
      if (__atomic_fetch_or(&seen[s], bit, __ATOMIC_RELAXED) & bit)
        sh->dups[group]++;
      else
        sh->uniq[group]++;
    }
    sh->acked[group]++;
  }
  bool group_done() const {
    return sh->acked[group].load(std::memory_order_relaxed) >= (uint64_t)count;
  }
  void sample(uint64_t ns) {
    uint64_t k = sh->nlat++;
    if (k < lat_cap) lat[k] = uint32_t(std::min<uint64_t>(ns, 0xffffffffu));
  }
};
// Publishes one after the other, each timed to its confirmation; the first 200 are not.
static void one_by_one(Ctx& c, long n, const std::function<void(long)>& one,
                       const std::function<void()>& barrier) {
  for (int i = 0; i < 200; i++) one(i);
  barrier();
  long i = 0;
  for (; i < n && !c.expired(); i++) {
    uint64_t t = now_ns();
    one(i);
    c.sample(now_ns() - t);
  }
  c.sh->confirmed += i;
}
// What each driver implements:
static void drv_setup(Ctx& c);  // create queue/stream (parent process, own connection)
static void drv_producer(
    Ctx& c, long n,
    std::function<void()> barrier);  // connect, barrier(), publish n, all confirmed on return
static void drv_lat(Ctx& c, long n,
                    std::function<void()> barrier);  // n sequential publish+confirm, c.sample(ns)
static void drv_paced(
    Ctx& c, long n,
    std::function<void()> barrier);  // n publishes at c.rate/s, confirms taken asynchronously
static void drv_consumer(
    Ctx& c, std::function<void()> barrier);  // consume+ack until c.group_done() or expired

static void pace_until(uint64_t t) {  // sleep then spin the last 60us
  for (;;) {
    uint64_t n = now_ns();
    if (n >= t) return;
    if (t - n > 120000) {
      timespec ts{0, long(t - n - 60000)};
      nanosleep(&ts, nullptr);
    }
  }
}
static void print_lat(uint32_t* lat, uint64_t n) {
  std::sort(lat, lat + n);
  auto q = [&](double p) { return n ? lat[std::min<uint64_t>(n - 1, uint64_t(p * n))] / 1e3 : 0; };
  double sum = 0;
  for (uint64_t i = 0; i < n; i++) sum += lat[i];
  printf(
      ", \"samples\": %lu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": "
      "%.1f, \"mean_us\": %.1f",
      (unsigned long)n, q(.5), q(.99), q(.999), n ? lat[n - 1] / 1e3 : 0, n ? sum / n / 1e3 : 0);
}
// modes: pub | e2e | lat | e2elat | drain
int main(int argc, char** argv) {
  Args a(argc, argv);
  Ctx c;
  c.a = &a;
  signal(SIGPIPE, SIG_IGN);
  c.mode = a.s("mode", "pub");
  c.size = a.n("size", 256);
  c.count = a.n("count", 200000);
  c.window = a.n("window", 1000);
  c.producers = a.n("producers", 1);
  c.consumers = a.n("consumers", 1);
  c.groups = a.n("groups", 1);
  c.rate = a.n("rate", 1000);
  c.max_s = a.n("max-s", 45);
  long spid = a.n("server-pid", 0);
  if (c.mode == "e2elat") c.count = c.rate * a.n("seconds", 10);
  if (c.mode == "pub" || c.mode == "lat") c.consumers = 0, c.groups = 1;
  if (c.mode == "drain") c.producers = 0;
  if (c.mode == "lat" || c.mode == "e2elat") c.producers = 1;
  if (c.size < 16) c.size = 16;
  c.lat_cap = std::max<uint64_t>(c.count * c.groups, 1024);
  size_t bytes = sizeof(Shared) + c.count + c.lat_cap * 4 + 8192;
  char* m = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (m == MAP_FAILED) die("mmap");
  c.sh = (Shared*)m;
  c.lat = (uint32_t*)(m + ((sizeof(Shared) + 63) & ~63ul));
  c.seen = (uint8_t*)(c.lat + c.lat_cap);
  c.payload.resize(c.size);
  Shared* sh = c.sh;
  sh->prod_left = c.producers;
  {
    pid_t p = fork();
    if (!p) {
      c.deadline = now_ns() + 60000000000ull;
      drv_setup(c);
      _exit(0);
    }
    int st;
    waitpid(p, &st, 0);
    if (st) {
      fprintf(stderr, "setup failed\n");
      return 3;
    }
  }
  int nproc = 0;
  std::vector<pid_t> kids;
  auto spawn = [&](std::function<void(Ctx&, std::function<void()>)> f) {
    Ctx k = c;
    k.slot = nproc++;
    k.deadline = now_ns() + uint64_t((c.max_s + 20) * 1e9);
    pid_t p = fork();
    if (p < 0) die("fork");
    if (!p) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      double c0 = 0;
      k.msg(0);
      f(k, [&] {
        sh->ready++;
        while (!sh->go) usleep(200);
        k.deadline = sh->go_ns + uint64_t(c.max_s * 1e9);
        c0 = self_cpu();
      });
      sh->cpu[k.slot] = self_cpu() - c0;
      if (!sh->fin_ns[k.slot]) sh->fin_ns[k.slot] = now_ns();
      _exit(0);
    }
    kids.push_back(p);
  };
  for (int g = 0; g < c.groups; g++)
    for (int i = 0; i < c.consumers; i++) {
      c.group = g;
      c.cons_idx = i;
      spawn([](Ctx& k, std::function<void()> b) { drv_consumer(k, b); });
    }
  c.group = 0;
  for (int i = 0; i < c.producers; i++) {
    long per = c.count / c.producers, n = i == c.producers - 1 ? c.count - per * i : per;
    c.prod_idx = i;
    c.seq_base = uint64_t(per) * i;
    spawn([n](Ctx& k, std::function<void()> b) {
      if (k.mode == "lat")
        drv_lat(k, n, b);
      else if (k.mode == "e2elat")
        drv_paced(k, n, b);
      else
        drv_producer(k, n, b);
      k.sh->prod_left--;
    });
  }
  for (uint64_t t0 = now_ns(); sh->ready < nproc; usleep(500))
    if (now_ns() - t0 > 40000000000ull) {
      fprintf(stderr, "barrier timeout\n");
      for (auto p : kids) kill(p, SIGKILL);
      return 3;
    }
  ProcStat s0 = proc_stat(spid);
  sh->go_ns = now_ns();
  uint64_t t0 = sh->go_ns;
  sh->go = 1;
  int bad = 0;
  for (auto p : kids) {
    int st;
    waitpid(p, &st, 0);
    if (st) bad++;
  }
  ProcStat s1 = proc_stat(spid);
  uint64_t fin = 0;
  double cpu = 0, pcpu = 0;
  uint64_t first = ~0ull, pfin = 0;
  int ncons = c.groups * c.consumers;
  for (int i = 0; i < nproc; i++) {
    fin = std::max(fin, sh->fin_ns[i]);
    cpu += sh->cpu[i];
    if (i >= ncons) pcpu += sh->cpu[i], pfin = std::max(pfin, sh->fin_ns[i]);
    if (sh->first_ns[i]) first = std::min(first, sh->first_ns[i]);
  }
  double el = (fin - t0) / 1e9;
  uint64_t done = sh->confirmed;
  if (ncons) {
    done = ~0ull;
    for (int g = 0; g < c.groups; g++) done = std::min<uint64_t>(done, sh->acked[g]);
  }
  printf(
      "{\"peer\": \"%s\", \"test\": \"%s\", \"mode\": \"%s\", \"size\": %ld, \"count\": %ld, "
      "\"window\": %ld, \"producers\": %ld, \"consumers\": %ld, \"groups\": %ld, \"done\": %lu, "
      "\"complete\": %s, \"elapsed_s\": %.4f, \"msgs_per_s\": %.1f",
      a.s("label", "?").c_str(), a.s("test", "?").c_str(), c.mode.c_str(), c.size, c.count,
      c.window, c.producers, c.consumers, c.groups, (unsigned long)done,
      done >= (uint64_t)c.count && !bad ? "true" : "false", el, done / el);
  if (c.producers && ncons)
    printf(", \"confirmed\": %lu, \"pub_elapsed_s\": %.4f, \"pub_msgs_per_s\": %.1f",
           (unsigned long)sh->confirmed.load(), (pfin - t0) / 1e9,
           sh->confirmed.load() / ((pfin - t0) / 1e9));
  printf(
      ", \"errors\": %lu, \"bad_procs\": %d, \"cpu_server_s\": %.3f, \"cpu_clients_s\": %.3f, "
      "\"cpu_producers_s\": %.3f, \"cpu_s_per_1M\": %.3f, \"server_rss_kb\": %ld, "
      "\"server_write_bytes\": %.0f, \"server_wchar\": %.0f, \"server_syscw\": %.0f",
      (unsigned long)sh->errors.load(), bad, s1.cpu - s0.cpu, cpu, pcpu,
      done ? (s1.cpu - s0.cpu + cpu) * 1e6 / done : 0, s1.rss_kb, s1.write_bytes - s0.write_bytes,
      s1.wchar_ - s0.wchar_, s1.syscw - s0.syscw);
  if (ncons) {
    printf(", \"uniq\": [");
    for (int g = 0; g < c.groups; g++)
      printf("%s%lu", g ? ", " : "", (unsigned long)sh->uniq[g].load());
    printf("], \"dups\": [");
    for (int g = 0; g < c.groups; g++)
      printf("%s%lu", g ? ", " : "", (unsigned long)sh->dups[g].load());
    printf("]");
  }
  if (c.mode == "drain") {
    uint64_t base = strtoull(a.s("t0", "0").c_str(), nullptr, 10);
    if (base && first != ~0ull) printf(", \"serve_after_restart_s\": %.3f", (first - base) / 1e9);
    if (first != ~0ull)
      printf(", \"drain_s\": %.3f, \"drain_msgs_per_s\": %.1f", (fin - first) / 1e9,
             done / ((fin - first) / 1e9));
  }
  if (c.mode == "lat" || c.mode == "e2elat")
    print_lat(c.lat, std::min<uint64_t>(sh->nlat, c.lat_cap));
  printf("}\n");
  return done >= (uint64_t)c.count && !bad ? 0 : 1;
}
