// A client of a broker, by docs/protocol.md. For one thread.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common.h"

// The outputs of a request. The views are of `frames`.
struct Reply {
  std::vector<std::string> frames;
  std::vector<TensorView> outputs;
  int64_t version = 0, queue_us = 0, compute_us = 0;
};

class Broker {
 public:
  // Connect, and wait until the broker answers. Throws UNAVAILABLE if it does not within `timeout` seconds.
  Broker(std::string endpoint, double timeout);
  ~Broker();

  // Begin a request for a region. `inputs` are copied. Returns its number.
  int64_t send(const Region& region, const std::vector<TensorView>& inputs);

  // Wait for the reply to a request. Throws OffloadError: what the broker or the worker said, DEADLINE_EXCEEDED, or
  // UNAVAILABLE if the broker is silent.
  Reply receive(int64_t id);

  // Drop all requests that nothing will receive.
  void cancel();

 private:
  using Clock = std::chrono::steady_clock;
  struct Pending {
    const Region* region = nullptr;
    std::vector<std::string> tensors;  // the frames after the envelope, to send them again
    Clock::time_point deadline;
    std::unique_ptr<Reply> reply;
    std::unique_ptr<OffloadError> error;
  };

  void request(int64_t id, const Pending& pending);
  std::string cancellation(int64_t id) const;
  void ping();
  void write(const std::string& envelope, const std::vector<std::string>& frames = {});
  bool wait(Clock::time_point until);
  void read();
  void handle(std::vector<std::string> frames);

  const std::string endpoint_;
  const Clock::duration timeout_;
  std::unique_ptr<void, int (*)(void*)> context_, socket_;
  std::string session_;
  int64_t last_id_ = 0;
  int64_t max_frame_bytes_ = 0;  // the broker's; 0 until it has told
  std::map<int64_t, Pending> pending_;
  Clock::time_point heard_;
};
