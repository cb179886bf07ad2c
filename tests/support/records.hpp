// Records of messages for tests that play the spool, or a dispatcher.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "dray/balancing/protocol.hpp"
#include "dray/spool/backlog.hpp"

namespace dray::test {

inline std::shared_ptr<const spool::Records> records_of(const std::vector<Sequence>& sequences,
                                                        std::string_view envelope) {
  auto records = std::make_shared<spool::Records>();
  for (const auto sequence : sequences) records->add_loose(sequence, envelope);
  return records;
}

// A DELIVER as it is decoded. `owner` keeps its bytes.
struct DeliverFrame {
  balancing::ProtocolFrame frame;
  std::shared_ptr<const spool::Records> owner;
};
inline DeliverFrame deliver_frame(std::uint64_t epoch, const std::vector<Sequence>& sequences,
                                  std::uint32_t number = 1, std::uint32_t attempt = 1,
                                  std::string_view envelope = "envelope") {
  auto records = records_of(sequences, envelope);
  const balancing::Deliver deliver{epoch, number, attempt, 0};
  auto frame =
      balancing::decode_frame(balancing::encode(deliver), records->extent(0, records->size()));
  DRAY_ASSERT(frame.ok());
  return {std::move(*frame), std::move(records)};
}

}  // namespace dray::test
