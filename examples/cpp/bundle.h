// A device bundle in TVM's runtime: the part of the model before the cut, and the calls of what is after it.
#pragma once

#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include "broker.h"
#include "common.h"

struct Output {
  TensorSpec spec;
  std::string bytes;
};

class Bundle {
 public:
  // Load the folder `device` that zmq-offload compile writes. Throws FAILED_PRECONDITION if it cannot be used.
  Bundle(const std::filesystem::path& folder, Broker& broker);
  ~Bundle();

  const std::vector<TensorSpec>& inputs() const { return inputs_; }
  const std::vector<TensorSpec>& outputs() const { return outputs_; }

  // The outputs for inputs in the order of `inputs()`, each of as many bytes as its tensor has.
  std::vector<Output> run(const std::vector<std::string>& inputs);

 private:
  void read_manifest(const std::filesystem::path& folder);
  void register_calls();
  void call(const Region& region, tvm::ffi::PackedArgs arguments, tvm::ffi::Any* result);
  void begin(const Region& region, tvm::ffi::PackedArgs arguments);
  void finish(const Region& region, tvm::ffi::PackedArgs arguments);

  Broker& broker_;
  std::vector<TensorSpec> inputs_, outputs_;
  std::vector<Region> regions_;
  std::string checksum_, tvm_version_, architecture_;
  std::vector<std::string> symbols_;
  std::exception_ptr failure_;  // what ended a run: TVM passes on its text alone
  tvm::ffi::Optional<tvm::ffi::Module> machine_;
};
