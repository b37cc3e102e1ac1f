#include "broker.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "msgpack.h"
#include "sha256.h"
#include "zeromq.h"

namespace {

constexpr char kProtocol = 4;
constexpr int64_t kMaxFrameBytes = 256 << 20;  // what this client takes
constexpr size_t kPackedBytes = 4096;          // larger tensors have frames of their own
constexpr auto kPingInterval = std::chrono::milliseconds(500);
constexpr auto kSilence = std::chrono::milliseconds(1500);
enum Code { kRequest = 1, kCancel = 2, kPing = 4, kResult = 17, kError = 18, kPong = 20 };

std::string envelope(const Writer& fields) { return kProtocol + fields.bytes(); }

std::string random_session() {
  std::random_device random;
  std::string bytes;
  while (bytes.size() < 16) bytes += static_cast<char>(random());
  return bytes;
}

void describe(Writer& writer, const TensorSpec& spec) {
  writer.array(3).text(spec.name).text(spec.datatype).array(spec.shape.size());
  for (int64_t extent : spec.shape) writer.extent(extent);
}

// 16 bytes that stand for the tensors of a region: the broker picks a version with the same.
std::string signature(const Region& region) {
  Writer writer;
  writer.array(2);
  for (std::vector<TensorSpec> specs : {region.inputs, region.outputs}) {
    std::sort(specs.begin(), specs.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    writer.array(specs.size());
    for (const TensorSpec& spec : specs) describe(writer, spec);
  }
  return sha256(writer.bytes()).substr(0, 16);
}

// The frames after the envelope: the header with the small tensors, then a frame for each large one.
std::vector<std::string> encode(const std::vector<TensorView>& tensors) {
  Writer header;
  header.array(tensors.size());
  for (const TensorView& tensor : tensors) describe(header, tensor.spec);
  std::string head;
  for (int shift = 24; shift >= 0; shift -= 8) head += static_cast<char>(header.bytes().size() >> shift);
  std::vector<std::string> frames = {head + header.bytes()};
  for (const TensorView& tensor : tensors) {
    std::string bytes(static_cast<const char*>(tensor.data), tensor.spec.bytes());
    bytes.size() <= kPackedBytes ? void(frames[0] += bytes) : frames.push_back(std::move(bytes));
  }
  return frames;
}

// The tensors of a message whose frames, from the second, are as `encode` makes them.
std::vector<TensorView> decode(const std::vector<std::string>& frames) {
  const OffloadError malformed("INTERNAL", "the broker sent tensors that are not valid");
  if (frames.size() < 2 || frames[1].size() < 4) throw malformed;
  const std::string& head = frames[1];
  size_t at = 0;
  for (int byte = 0; byte < 4; ++byte) at = at << 8 | static_cast<uint8_t>(head[byte]);
  if (at > head.size() - 4) throw malformed;
  Reader header(std::string_view(head).substr(4, at));
  at += 4;
  std::vector<TensorView> tensors;
  size_t next = 2;
  for (size_t left = header.array(); left > 0; --left) {
    if (header.array() != 3) throw malformed;
    TensorSpec spec{header.text(), header.text(), {}};
    int64_t most = kMaxFrameBytes;  // elements, at least a byte each
    for (size_t extents = header.array(); extents > 0; --extents) {
      const int64_t extent = header.integer();
      if (extent < 0 || extent > most) throw malformed;
      most /= std::max<int64_t>(extent, 1);
      spec.shape.push_back(extent);
    }
    const size_t bytes = spec.bytes();
    if (bytes <= kPackedBytes) {
      if (bytes > head.size() - at) throw malformed;
      tensors.push_back({spec, head.data() + at});
      at += bytes;
    } else {
      if (next == frames.size() || frames[next].size() != bytes) throw malformed;
      tensors.push_back({spec, frames[next++].data()});
    }
  }
  return tensors;
}

}  // namespace

Broker::Broker(std::string endpoint, double timeout)
    : endpoint_(std::move(endpoint)),
      timeout_(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout))),
      context_(zmq_ctx_new(), zmq_ctx_term),
      socket_(zmq_socket(context_.get(), ZMQ_DEALER), zmq_close),
      session_(random_session()) {
  const std::pair<int, int> options[] = {
      {ZMQ_LINGER, 0}, {ZMQ_SNDTIMEO, 1000}, {ZMQ_HEARTBEAT_IVL, 5000}, {ZMQ_HEARTBEAT_TIMEOUT, 15000}};
  for (const auto& [option, value] : options) zmq_setsockopt(socket_.get(), option, &value, sizeof value);
  if (zmq_connect(socket_.get(), endpoint_.c_str()) != 0) {
    throw OffloadError("INVALID_ARGUMENT", "cannot connect to '" + endpoint_ + "' (" + zmq_strerror(zmq_errno()) +
                                               "); use an endpoint such as tcp://edge:5555");
  }
  ping();
  const auto end = Clock::now() + timeout_;
  while (max_frame_bytes_ == 0 && wait(end)) read();
  if (max_frame_bytes_ == 0) {
    throw OffloadError("UNAVAILABLE", "no broker answered at " + endpoint_ + "; start one with zmq-offload broker");
  }
}

Broker::~Broker() { cancel(); }

int64_t Broker::send(const Region& region, const std::vector<TensorView>& inputs) {
  Pending pending;
  pending.region = &region;
  pending.tensors = encode(inputs);
  for (const std::string& frame : pending.tensors) {
    if (static_cast<int64_t>(frame.size()) > max_frame_bytes_) {
      throw OffloadError("INVALID_ARGUMENT", "a frame of " + std::to_string(frame.size()) + " bytes; the broker takes " +
                                                 std::to_string(max_frame_bytes_) + " (--max-frame-bytes)");
    }
  }
  pending.deadline = Clock::now() + timeout_;
  const int64_t id = ++last_id_;
  request(id, pending_[id] = std::move(pending));
  return id;
}

Reply Broker::receive(int64_t id) {
  Pending& mine = pending_.at(id);
  size_t bytes = 0;
  for (const std::string& frame : mine.tensors) bytes += frame.size();
  const auto silence = kSilence + std::chrono::seconds(bytes >> 20);
  heard_ = Clock::now();
  auto next_ping = heard_ + kPingInterval;
  while (!mine.reply && !mine.error) {
    const auto now = Clock::now();
    if (now >= mine.deadline) {
      mine.error = std::make_unique<OffloadError>(
          "DEADLINE_EXCEEDED", "no reply of model '" + mine.region->model + "' within " +
                                   std::to_string(std::chrono::duration<double>(timeout_).count()) + " s");
      write(cancellation(id));
    } else if (now >= heard_ + silence) {
      mine.error = std::make_unique<OffloadError>("UNAVAILABLE", "the broker at " + endpoint_ + " does not answer");
    } else if (now >= next_ping) {
      ping();
      next_ping = now + kPingInterval;
    } else if (wait(std::min({next_ping, mine.deadline, heard_ + silence}))) {
      read();
    }
  }
  const Pending done = std::move(pending_.extract(id).mapped());
  if (done.error) throw *done.error;
  return std::move(*done.reply);
}

void Broker::cancel() {
  for (const auto& [id, _] : pending_) write(cancellation(id));
  pending_.clear();
}

std::string Broker::cancellation(int64_t id) const {
  return envelope(Writer().array(3).integer(kCancel).binary(session_).integer(id));
}

void Broker::request(int64_t id, const Pending& pending) {
  const Region& region = *pending.region;
  const auto left = std::chrono::duration_cast<std::chrono::microseconds>(pending.deadline - Clock::now()).count();
  Writer fields;
  fields.array(12).integer(kRequest).binary(session_).integer(id).text(region.model).integer(region.version);
  fields.integer(std::max<int64_t>(left, 0)).integer(0).binary(region.version ? "" : signature(region));
  fields.integer(kMaxFrameBytes).text(region.label).binary("").text("");
  write(envelope(fields), pending.tensors);
}

void Broker::ping() {
  const size_t count = std::min<size_t>(pending_.size(), 512);
  Writer fields;
  fields.array(3).integer(kPing).binary(session_).array(count);
  auto next = pending_.begin();
  for (size_t at = 0; at < count; ++at, ++next) fields.integer(next->first);
  write(envelope(fields));
}

// A message that cannot be sent is lost, as on a broken connection: the next Pong tells that the broker does not have it.
void Broker::write(const std::string& envelope, const std::vector<std::string>& frames) {
  if (zmq_send(socket_.get(), envelope.data(), envelope.size(), frames.empty() ? 0 : ZMQ_SNDMORE) < 0) return;
  for (size_t at = 0; at < frames.size(); ++at) {
    zmq_send(socket_.get(), frames[at].data(), frames[at].size(), at + 1 < frames.size() ? ZMQ_SNDMORE : 0);
  }
}

bool Broker::wait(Clock::time_point until) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
  zmq_pollitem_t item = {socket_.get(), 0, ZMQ_POLLIN, 0};
  return left >= 0 && zmq_poll(&item, 1, static_cast<long>(left) + 1) > 0;
}

// Take all messages that are there.
void Broker::read() {
  for (bool more = true; more;) {
    std::vector<std::string> frames;
    while (more) {
      zmq_msg_t message;
      zmq_msg_init(&message);
      if (zmq_msg_recv(&message, socket_.get(), ZMQ_DONTWAIT) < 0) return;
      frames.emplace_back(static_cast<const char*>(zmq_msg_data(&message)), zmq_msg_size(&message));
      more = zmq_msg_more(&message) != 0;
      zmq_msg_close(&message);
    }
    handle(std::move(frames));
    more = true;
  }
}

void Broker::handle(std::vector<std::string> frames) {
  if (frames[0].empty() || frames[0][0] != kProtocol) {
    throw OffloadError("UNAVAILABLE", "the peer at " + endpoint_ + " does not speak version 4 of the protocol");
  }
  heard_ = Clock::now();
  const std::string first = frames[0].substr(1);
  Reader fields(first);
  fields.array();
  const int64_t code = fields.integer();
  if (fields.binary() != session_) return;
  if (code == kPong) {
    for (size_t lost = fields.array(); lost > 0; --lost) {
      const int64_t id = fields.integer();
      const auto found = pending_.find(id);
      if (found != pending_.end() && !found->second.reply && !found->second.error) request(id, found->second);
    }
    max_frame_bytes_ = fields.integer();
    return;
  }
  const auto found = pending_.find(fields.integer());
  if (found == pending_.end()) return;  // late: nobody waits for it any more
  if (code == kError) {
    const std::string status = fields.text();
    found->second.error = std::make_unique<OffloadError>(status, fields.text());
  } else if (code == kResult) {
    auto reply = std::make_unique<Reply>();
    reply->version = fields.integer();
    reply->queue_us = fields.integer();
    reply->compute_us = fields.integer();
    reply->frames = std::move(frames);
    reply->outputs = decode(reply->frames);
    found->second.reply = std::move(reply);
  }
}
