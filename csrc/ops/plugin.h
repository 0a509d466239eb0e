#pragma once

#include <cstdint>

#include "csrc/ops/backend.h"

// A backend in a shared library of its own: what csrc/runtime asks of it beside the ops. Nothing
// throws across this boundary, and nothing but plain structs crosses it.
namespace zc {

struct DeviceContext;  // a device as its plugin knows it: memory, one stream, scratch
struct DeviceGraph;    // recorded ops, ready to be launched again

// What is known of a device before and after it was opened.
struct DeviceFacts {
  char name[128];          // "NVIDIA H200"
  char architecture[16];   // "sm_90"
  int32_t driver_version;  // 1000 major + 10 minor, as CUDA counts
  int32_t runtime_version;
  int32_t n_multiprocessors;
  int64_t memory_bytes;  // of the whole device
};

inline constexpr uint32_t kPluginVersion = 1;

struct Plugin {
  uint32_t version;  // kPluginVersion it was built with; first, and read before anything else
  const char* name;  // "cuda" or "cuda-emu"
  const Backend* backend;

  // Devices that can be opened; status says why there is none (no driver, too old a driver, no
  // device, no code for its architecture).
  int32_t (*device_count)(OpStatus*);
  void (*device_facts)(int32_t ordinal, DeviceFacts*, OpStatus*);

  DeviceContext* (*open)(int32_t ordinal, OpStatus*);
  void (*close)(DeviceContext*);  // waits for what runs

  // Device memory, 256-byte aligned, given and taken in stream order. May be called on any thread.
  void* (*allocate)(DeviceContext*, int64_t bytes, OpStatus*);
  // The same, but its bytes are zero.
  void* (*reserve)(DeviceContext*, int64_t bytes, OpStatus*);
  void (*release)(DeviceContext*, void*);
  // Copies in stream order; `from` (`to`) is host memory. write may return before it is done but
  // not before `from` can change; read returns when it is done.
  void (*write)(DeviceContext*, void* to, const void* from, int64_t bytes, OpStatus*);
  void (*read)(DeviceContext*, void* to, const void* from, int64_t bytes, OpStatus*);
  void (*fill)(DeviceContext*, void* to, int32_t byte, int64_t bytes, OpStatus*);

  // Waits until everything before has run; the first thing that went wrong since the last call.
  void (*synchronize)(DeviceContext*, OpStatus*);

  // Ops between begin and end are recorded, not run. Null in a plugin that has no graphs: programs
  // then run op by op.
  void (*begin_recording)(DeviceContext*, OpStatus*);
  DeviceGraph* (*end_recording)(DeviceContext*, OpStatus*);
  void (*launch_graph)(DeviceContext*, DeviceGraph*, OpStatus*);
  void (*release_graph)(DeviceContext*, DeviceGraph*);
};

// The one symbol that a plugin exports.
using PluginEntry = const Plugin* (*)();
inline constexpr const char* kPluginEntry = "zipcache_plugin";

}  // namespace zc
