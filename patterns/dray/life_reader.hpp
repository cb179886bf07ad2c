// LifeReader: the life of one message, from the records of its log.
//
// Threading: one thread. Failure: records that cannot be decoded are passed over.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dray/message_life.hpp"
#include "dray/spool/record.hpp"
#include "dray/spool/record_payload.hpp"

namespace dray {

// Collects the events of one message from records in the order of the log.
class LifeReader {
 public:
  explicit LifeReader(Sequence sequence) : sequence_(sequence) {}

  void take(const spool::Record& record);
  std::vector<LifeEvent> events(spool::GroupId group) const;

 private:
  void on_delivery(const spool::DeliveryRecord& delivery);
  void add(spool::GroupId group, LifeEvent event);
  void on_copy(const spool::CopyRecord& copy);

  const Sequence sequence_;
  std::map<std::string, std::string> workers_;  // name by session id
  std::map<spool::GroupId, std::vector<LifeEvent>> events_;
};

}  // namespace dray
