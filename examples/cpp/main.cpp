// Runs a device bundle: the part before the cut here, the rest on the workers of a broker.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>

#include "broker.h"
#include "bundle.h"

namespace {

constexpr const char* kUsage =
    "usage: offload DEVICE_BUNDLE BROKER INPUT=FILE ... [--timeout SECONDS] [--repeat COUNT] [--output FOLDER]\n"
    "  INPUT=FILE  an input's name, and a file with its elements: row-major, little-endian\n"
    "  --output    write the outputs to FOLDER/0.bin, FOLDER/1.bin, ...\n";

constexpr double kLongest = 86400;  // seconds

struct Arguments {
  std::string bundle, broker, output;
  std::map<std::string, std::string> files;
  double timeout = 5;
  int repeat = 1;
};

Arguments parse(int count, char** words) {
  Arguments found;
  std::vector<std::string> places;
  for (int at = 1; at < count; ++at) {
    const std::string word = words[at];
    const auto value = [&] { return at + 1 < count ? std::string(words[++at]) : std::string(); };
    const size_t equals = word.find('=');
    if (word == "--timeout") found.timeout = std::atof(value().c_str());
    else if (word == "--repeat") found.repeat = std::atoi(value().c_str());
    else if (word == "--output") found.output = value();
    else if (word[0] == '-') throw OffloadError("INVALID_ARGUMENT", "'" + word + "' is not an option\n" + kUsage);
    else if (places.size() < 2) places.push_back(word);
    else if (equals == std::string::npos) throw OffloadError("INVALID_ARGUMENT", "'" + word + "' is not INPUT=FILE");
    else found.files[word.substr(0, equals)] = word.substr(equals + 1);
  }
  const bool timed = found.timeout > 0 && found.timeout <= kLongest;  // false for a NaN
  if (places.size() < 2 || !timed || found.repeat < 1) throw OffloadError("INVALID_ARGUMENT", kUsage);
  found.bundle = places[0], found.broker = places[1];
  return found;
}

std::string read_input(const TensorSpec& spec, const std::map<std::string, std::string>& files) {
  for (int64_t extent : spec.shape) {
    if (extent == -1) throw OffloadError("UNIMPLEMENTED", "input " + spec.text() + ": this example needs fixed shapes");
  }
  const std::string wanted = "; give " + spec.name + "=FILE with " + std::to_string(spec.bytes()) + " bytes";
  const auto file = files.find(spec.name);
  if (file == files.end()) throw OffloadError("INVALID_ARGUMENT", "input " + spec.text() + " is missing" + wanted);
  std::ifstream stream;
  if (!std::filesystem::is_directory(file->second)) stream.open(file->second, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  if (!stream.is_open() || bytes.size() != spec.bytes()) {
    throw OffloadError("INVALID_ARGUMENT", file->second + " has " + std::to_string(bytes.size()) + " bytes" + wanted);
  }
  return bytes;
}

template <typename T>
void print_as(const char* data, size_t count) {
  for (size_t at = 0; at < count; ++at) {
    T value;
    std::memcpy(&value, data + at * sizeof value, sizeof value);
    std::cout << ' ' << +value;
  }
}

// One line: name, datatype, shape and the first elements.
void print(const Output& output) {
  const TensorSpec& spec = output.spec;
  const char* data = output.bytes.data();
  const size_t count = std::min<size_t>(8, spec.bytes() / element_bytes(spec.datatype));
  std::cout << spec.text();
  if (spec.datatype == "FP32") print_as<float>(data, count);
  else if (spec.datatype == "FP64") print_as<double>(data, count);
  else if (spec.datatype == "INT64") print_as<int64_t>(data, count);
  else if (spec.datatype == "INT32") print_as<int32_t>(data, count);
  else if (spec.datatype == "UINT8") print_as<uint8_t>(data, count);
  std::cout << std::endl;
}

void check_names(const std::vector<TensorSpec>& inputs, const std::map<std::string, std::string>& files) {
  for (const auto& [name, _] : files) {
    if (std::none_of(inputs.begin(), inputs.end(), [&](const TensorSpec& spec) { return spec.name == name; })) {
      throw OffloadError("INVALID_ARGUMENT", "the model has no input '" + name + "'");
    }
  }
}

void run(const Arguments& arguments) {
  Broker broker(arguments.broker, arguments.timeout);
  Bundle bundle(arguments.bundle, broker);
  check_names(bundle.inputs(), arguments.files);
  std::vector<std::string> inputs;
  for (const TensorSpec& spec : bundle.inputs()) inputs.push_back(read_input(spec, arguments.files));
  for (int time = 0; time < arguments.repeat; ++time) {
    const auto began = std::chrono::steady_clock::now();
    const std::vector<Output> outputs = bundle.run(inputs);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    for (size_t at = 0; at < outputs.size(); ++at) {
      print(outputs[at]);
      if (arguments.output.empty()) continue;
      std::ofstream file(std::filesystem::path(arguments.output) / (std::to_string(at) + ".bin"), std::ios::binary);
      if (!(file << outputs[at].bytes)) {
        throw OffloadError("INVALID_ARGUMENT", "'" + arguments.output + "' cannot be written to; give a folder");
      }
    }
    std::cerr << "took " << took.count() << " ms" << std::endl;
  }
}

}  // namespace

int main(int count, char** words) {
  try {
    run(parse(count, words));
    return 0;
  } catch (const OffloadError& error) {
    std::cerr << "error " << error.code << ": " << error.what() << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "error INTERNAL: " << error.what() << std::endl;
  }
  return 1;
}
