// A worker on another machine: everything between them is encrypted, and each side knows the other
// by its key. Here both are one program; only what "producer" and "worker" say would lie apart.
#include <dray/endpoint_keys.hpp>
#include <fstream>
#include <future>

#include "example.hpp"

struct Job {
  std::string name;
  DRAY_FIELDS(name)
};

int main() {
  const example::Folder folder;
  // `dray keygen spool` and `dray keygen worker-1` make these as files.
  const auto spool_keys = dray::make_key_pair();
  const auto worker_keys = dray::make_key_pair();

  // The producer's machine.
  const std::string allowed = folder.spool() + ".allowed.toml";
  std::ofstream(allowed) << "[worker]\n\"worker-1\" = \"" << worker_keys.public_key << "\"\n";
  dray::SpoolerOptions options{
      .directory = folder.spool(), .bind = "tcp://0.0.0.0:*", .groups = {{"jobs", {"job"}}}};
  options.keys = dray::SpoolerKeys{spool_keys.public_key, spool_keys.secret_key, allowed};
  const auto spooler = example::must(dray::Spooler::open(options));
  example::must(spooler->publish("job", Job{"sweep the yard"}));
  const std::string bound = example::must(spooler->status()).endpoint;

  // The worker's machine: it knows a name, a port, its own keys and the spool's public one.
  const std::string endpoint = "tcp://localhost:" + bound.substr(bound.rfind(':') + 1);
  dray::WorkerSettings settings{.group = "jobs", .endpoints = {endpoint}};
  settings.keys = dray::WorkerSettings::Keys{
      worker_keys.public_key, worker_keys.secret_key, {{endpoint, spool_keys.public_key}}};
  std::promise<std::string> done;
  const auto worker = example::must(
      dray::Worker::start(settings, dray::handle_with<Job>([&](const Job& job, dray::Delivery&) {
                            done.set_value(job.name);
                            return dray::done();
                          })));
  std::printf("done far away: %s\n", done.get_future().get().c_str());
  return worker->drain(std::chrono::seconds(5)) ? 0 : 1;
}
