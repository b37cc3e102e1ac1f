#include "bundle.h"

#include <dlfcn.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/runtime/base.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>

#include "sha256.h"

namespace fs = std::filesystem;
namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

namespace {

constexpr int64_t kFormatVersion = 1;
#if defined(__aarch64__)
constexpr const char* kArchitecture = "aarch64";
#else
constexpr const char* kArchitecture = "x86_64";
#endif
constexpr int64_t kMostElements = int64_t{1} << 40;
constexpr int kPooledAllocator = 2;  // tvm::runtime::memory::AllocatorType::kPooled

std::string contents(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream bytes;
  if (!(bytes << stream.rdbuf())) {
    throw OffloadError("FAILED_PRECONDITION", file.string() + " cannot be read; is it in a device bundle?");
  }
  return bytes.str();
}

json::Value field(const json::Value& object, const char* key) { return object.cast<json::Object>().at(ffi::String(key)); }

std::string text(const json::Value& object, const char* key) { return field(object, key).cast<ffi::String>(); }

std::vector<TensorSpec> specs(const json::Value& object, const char* key) {
  std::vector<TensorSpec> found;
  for (const json::Value& entry : field(object, key).cast<json::Array>()) {
    TensorSpec spec{text(entry, "name"), text(entry, "datatype"), {}};
    element_bytes(spec.datatype);  // throws if it is not known
    int64_t most = kMostElements;
    for (const json::Value& value : field(entry, "shape").cast<json::Array>()) {
      const int64_t extent = value.cast<int64_t>();
      if (extent < -1 || extent > most) throw OffloadError("INVALID_ARGUMENT", "shape of " + spec.name + " cannot be");
      most /= std::max<int64_t>(extent, 1);
      spec.shape.push_back(extent);
    }
    found.push_back(spec);
  }
  return found;
}

// The version that a device asks for: a number, "latest" or "label:NAME".
void set_version(Region& region, const json::Value& policy) {
  if (auto number = policy.try_cast<int64_t>()) {
    region.version = *number;
  } else if (std::string name = policy.cast<ffi::String>(); name.rfind("label:", 0) == 0) {
    region.label = name.substr(std::strlen("label:"));
  } else if (name != "latest") {
    throw OffloadError("INVALID_ARGUMENT", "version '" + name + "' is not a number, latest or label:NAME");
  }
}

DLDataType dtype_of(const std::string& datatype) {
  const uint8_t bits = static_cast<uint8_t>(8 * element_bytes(datatype));
  if (datatype == "BOOL") return {kDLBool, bits, 1};
  return {static_cast<uint8_t>(datatype[0] == 'F' ? kDLFloat : datatype[0] == 'U' ? kDLUInt : kDLInt), bits, 1};
}

// TVM's code needs memory that is aligned to 64 bytes, which TVM's own is.
ffi::Tensor tensor_of(const TensorSpec& spec, const void* data) {
  static const ffi::Function allocate = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  const ffi::Shape shape(spec.shape.begin(), spec.shape.end());
  auto made = allocate(shape, dtype_of(spec.datatype), DLDevice{kDLCPU, 0}, nullptr).cast<ffi::Tensor>();
  std::memcpy(made.data_ptr(), data, spec.bytes());
  return made;
}

char* data_of(const DLTensor& tensor) { return static_cast<char*>(tensor.data) + tensor.byte_offset; }

TensorSpec spec_of(const std::string& name, const DLTensor& tensor) {
  const int code = tensor.dtype.code;
  const std::string kind = code == kDLFloat ? "FP" : code == kDLUInt ? "UINT" : "INT";
  const std::string datatype = code == kDLBool ? "BOOL" : kind + std::to_string(tensor.dtype.bits);
  return {name, datatype, {tensor.shape, tensor.shape + tensor.ndim}};
}

std::vector<TensorView> views(const std::vector<TensorSpec>& specs, ffi::PackedArgs arguments) {
  std::vector<TensorView> found;
  for (size_t at = 0; at < specs.size(); ++at) {
    const DLTensor* tensor = arguments[static_cast<int>(at)].cast<DLTensor*>();
    found.push_back({spec_of(specs[at].name, *tensor), data_of(*tensor)});
  }
  return found;
}

// The output of a reply that a region has. Throws FAILED_PRECONDITION if the served version does not fit the bundle.
const TensorView& output(const Reply& reply, const TensorSpec& wanted) {
  for (const TensorView& view : reply.outputs) {
    if (wanted.fits(view.spec)) return view;
  }
  throw OffloadError("FAILED_PRECONDITION", "the served version " + std::to_string(reply.version) +
                                                " does not reply " + wanted.text() + ", as this bundle needs");
}

void fill(const Region& region, const Reply& reply, ffi::PackedArgs outputs) {
  for (size_t at = 0; at < region.outputs.size(); ++at) {
    const DLTensor* tensor = outputs[static_cast<int>(at)].cast<DLTensor*>();
    const TensorView& found = output(reply, spec_of(region.outputs[at].name, *tensor));
    std::memcpy(data_of(*tensor), found.data, found.spec.bytes());
  }
}

}  // namespace

Bundle::Bundle(const fs::path& folder, Broker& broker) : broker_(broker) {
  const fs::path library = folder / "device.so";
  read_manifest(folder);
  if (architecture_ != kArchitecture) {
    throw OffloadError("FAILED_PRECONDITION", library.string() + " was built for " + architecture_ + ", this CPU is " +
                                                  kArchitecture + "; compile it with --device-target for this one");
  }
  const std::string own = TVM_VERSION;  // of the headers, without a suffix such as ".post1"
  if (tvm_version_ != own && tvm_version_.rfind(own + ".", 0) != 0) {
    throw OffloadError("FAILED_PRECONDITION",
                       library.string() + " was built by TVM " + tvm_version_ + ", this is TVM " + own + "; compile it again");
  }
  std::ostringstream checksum;
  checksum << "sha256:" << std::hex;
  for (unsigned char byte : sha256(contents(library))) checksum << (byte >> 4) << (byte & 15);
  if (checksum.str() != checksum_) {
    throw OffloadError("FAILED_PRECONDITION", library.string() + " is damaged: manifest.json has another checksum");
  }
  dlopen("libtvm_runtime_extra.so", RTLD_NOW | RTLD_GLOBAL);  // sorting, where it is not built into the runtime
  const ffi::Module executable = ffi::Module::LoadFromFile(fs::absolute(library).string());
  machine_ = executable->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  register_calls();  // the virtual machine looks for them when it begins
  machine_.value()->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooledAllocator);
}

Bundle::~Bundle() {
  for (const std::string& symbol : symbols_) ffi::Function::RemoveGlobal(symbol);
}

void Bundle::read_manifest(const fs::path& folder) {
  const fs::path file = folder / "manifest.json";
  const std::string written = contents(file);
  try {
    const json::Value manifest = json::Parse(written);
    if (const auto format = field(manifest, "format_version").cast<int64_t>(); format != kFormatVersion) {
      throw OffloadError("INVALID_ARGUMENT", "format_version is " + std::to_string(format) + "; this program reads 1");
    }
    architecture_ = text(field(manifest, "cpu"), "architecture");
    inputs_ = specs(manifest, "inputs");
    outputs_ = specs(manifest, "outputs");
    checksum_ = text(manifest, "checksum");
    tvm_version_ = text(manifest, "tvm_version");
    for (const json::Value& entry : field(manifest, "offloaded").cast<json::Array>()) {
      Region region{text(entry, "symbol"), text(entry, "model"), "", 0, specs(entry, "inputs"), specs(entry, "outputs")};
      set_version(region, field(entry, "version"));
      regions_.push_back(region);
    }
  } catch (const ffi::Error& error) {
    throw OffloadError("FAILED_PRECONDITION", file.string() + " is damaged: " + std::string(error.message()));
  } catch (const OffloadError& error) {
    throw OffloadError("FAILED_PRECONDITION", file.string() + " is damaged: " + error.what());
  }
}

// The library calls a region by its symbol, or in two halves if other work fits in between.
void Bundle::register_calls() {
  const auto add = [this](const std::string& symbol, auto function) {
    const auto noting = [this, function](ffi::PackedArgs arguments, ffi::Any* result) {
      try {
        function(arguments, result);
      } catch (const std::exception& error) {
        failure_ = std::current_exception();
        TVM_FFI_THROW(RuntimeError) << error.what();
      }
    };
    ffi::Function::SetGlobal(symbol, ffi::Function::FromPacked(noting), true);
    symbols_.push_back(symbol);
  };
  for (const Region& region : regions_) {
    add(region.symbol, [this, &region](ffi::PackedArgs a, ffi::Any* result) { call(region, a, result); });
    add(region.symbol + "_send", [this, &region](ffi::PackedArgs a, ffi::Any*) { begin(region, a); });
    add(region.symbol + "_receive", [this, &region](ffi::PackedArgs a, ffi::Any*) { finish(region, a); });
  }
}

// Arguments: inputs, outputs. Without outputs, because their shapes were not known, they are returned.
void Bundle::call(const Region& region, ffi::PackedArgs arguments, ffi::Any* result) {
  const Reply reply = broker_.receive(broker_.send(region, views(region.inputs, arguments)));
  if (static_cast<size_t>(arguments.size()) > region.inputs.size()) {
    return fill(region, reply, arguments.Slice(static_cast<int>(region.inputs.size())));
  }
  ffi::Array<ffi::Tensor> results;
  for (const TensorSpec& wanted : region.outputs) {
    const TensorView& found = output(reply, wanted);
    results.push_back(tensor_of(found.spec, found.data));
  }
  *result = results.size() == 1 ? ffi::Any(results[0]) : ffi::Any(results);
}

// Arguments: inputs, token. Begins a request and writes its number to the token.
void Bundle::begin(const Region& region, ffi::PackedArgs arguments) {
  const int64_t id = broker_.send(region, views(region.inputs, arguments));
  std::memcpy(data_of(*arguments[arguments.size() - 1].cast<DLTensor*>()), &id, sizeof id);
}

// Arguments: token, inputs, outputs. Waits for the request.
void Bundle::finish(const Region& region, ffi::PackedArgs arguments) {
  int64_t id;
  std::memcpy(&id, data_of(*arguments[0].cast<DLTensor*>()), sizeof id);
  fill(region, broker_.receive(id), arguments.Slice(1 + static_cast<int>(region.inputs.size())));
}

std::vector<Output> Bundle::run(const std::vector<std::string>& inputs) {
  std::vector<ffi::Tensor> tensors;
  for (size_t at = 0; at < inputs_.size(); ++at) tensors.push_back(tensor_of(inputs_[at], inputs.at(at).data()));
  const std::vector<ffi::AnyView> arguments(tensors.begin(), tensors.end());
  ffi::Any result;
  failure_ = nullptr;
  try {
    const ffi::Function main = machine_.value()->GetFunction("main").value();
    main.CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
  } catch (const ffi::Error& error) {
    broker_.cancel();
    if (failure_) std::rethrow_exception(failure_);
    throw OffloadError("INTERNAL", std::string(error.message()));
  }
  auto single = result.try_cast<ffi::Tensor>();
  const auto results = single ? ffi::Array<ffi::Tensor>{*single} : result.cast<ffi::Array<ffi::Tensor>>();
  std::vector<Output> outputs;
  for (size_t at = 0; at < outputs_.size(); ++at) {
    const DLTensor* tensor = results[at].GetDLTensorPtr();
    const TensorSpec spec = spec_of(outputs_[at].name, *tensor);
    outputs.push_back({spec, std::string(data_of(*tensor), spec.bytes())});
  }
  return outputs;
}
