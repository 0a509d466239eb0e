#pragma once

#include <cstdint>

#include "csrc/ops/backend.h"

// A backend in a shared library of its own: what csrc/runtime asks of it beside the ops. Nothing
// throws across this boundary, and nothing but plain structs crosses it.
namespace zc {

struct DeviceContext;  // a device as its plugin knows it: memory, one stream, scratch
struct DeviceGraph;    // recorded ops, ready to be launched again
struct DeviceMark;     // a place in the stream that can be waited for

// What is known of a device before it is opened.
struct DeviceFacts {
  char name[128];          // "NVIDIA H200"
  char architecture[32];   // "sm_90"
  int32_t driver_version;  // 1000 major + 10 minor, as CUDA counts
  int32_t runtime_version;
  int32_t n_multiprocessors;
  int64_t memory_bytes;  // of the whole device
};

inline constexpr uint32_t kPluginVersion = 2;

// Bytes that a mark can read; more go through `read`.
inline constexpr int64_t kMaxMarkBytes = int64_t{1} << 22;

// Functions that take no context, allocate, reserve, release, release_graph and wait may be called
// on any thread; the others on one thread at a time, the stream's.
struct Plugin {
  uint32_t version;  // kPluginVersion it was built with; first, and read before anything else
  const char* name;  // "cuda" or "cuda-emu"
  const Backend* backend;

  // How many devices there are; the status says why there is none (no driver, too old a driver, no
  // device). May take a second the first time.
  int32_t (*device_count)(OpStatus*);
  // The status says why the device cannot be opened; the facts are filled as far as they are known.
  void (*device_facts)(int32_t ordinal, DeviceFacts*, OpStatus*);
  // Does the slow part of the first `open`, so that it can be done on another thread.
  void (*prepare)(int32_t ordinal, OpStatus*);

  DeviceContext* (*open)(int32_t ordinal, OpStatus*);
  void (*close)(DeviceContext*);  // waits for what runs

  // Device memory, 256-byte aligned, given and taken in stream order; kOutOfMemory leaves
  // everything as it was.
  void* (*allocate)(DeviceContext*, int64_t bytes, OpStatus*);
  // The same, but its bytes are zero.
  void* (*reserve)(DeviceContext*, int64_t bytes, OpStatus*);
  void (*release)(DeviceContext*, void*);
  // Bytes that could still be allocated.
  int64_t (*free_bytes)(DeviceContext*, OpStatus*);

  // Copies in stream order; `from` (`to`) is host memory. write may return before it is done but
  // not before `from` may change; read returns when it is done.
  void (*write)(DeviceContext*, void* to, const void* from, int64_t bytes, OpStatus*);
  void (*read)(DeviceContext*, void* to, const void* from, int64_t bytes, OpStatus*);
  void (*fill)(DeviceContext*, void* to, int32_t byte, int64_t bytes, OpStatus*);

  // A place in the stream, after everything before it and a copy of so many bytes, at most
  // kMaxMarkBytes, of device memory. Commands may follow before it is waited for.
  DeviceMark* (*mark)(DeviceContext*, const void* from, int64_t bytes, OpStatus*);
  // Returns when the mark was reached: the copied bytes (`to` may be null: dropped), and the first
  // thing that went wrong between the mark before and this one. Ends the mark.
  void (*wait)(DeviceContext*, DeviceMark*, void* to, OpStatus*);

  // Ops between begin and end are recorded, not run. After an op that failed, end gives what is
  // there, to be released.
  void (*begin_recording)(DeviceContext*, OpStatus*);
  DeviceGraph* (*end_recording)(DeviceContext*, OpStatus*);
  void (*launch_graph)(DeviceContext*, DeviceGraph*, OpStatus*);
  void (*release_graph)(DeviceContext*, DeviceGraph*);  // null: nothing
};

// The one symbol that a plugin exports.
using PluginEntry = const Plugin* (*)();
inline constexpr const char* kPluginEntry = "zipcache_plugin";

}  // namespace zc
