// The plugin's entry: csrc/ops/plugin.h as a table of functions that do not throw.
#include "csrc/ops/plugin.h"

#include "csrc/cuda/device_query.h"
#include "csrc/cuda/guard.h"
#include "csrc/cuda/op_table.h"

namespace zc::cuda {

namespace {

int32_t count(OpStatus* status) {
  int32_t n = 0;
  guarded(status, [&] { n = device_count(); });
  return n;
}

void facts(int32_t ordinal, DeviceFacts* facts, OpStatus* status) {
  guarded(status, [&] { query_device(ordinal, facts); });
}

void prepare(int32_t ordinal, OpStatus* status) {
  guarded(status, [&] {
    check_cuda(cudaSetDevice(ordinal), "cudaSetDevice");
    check_cuda(cudaFree(nullptr), "the device's context");
  });
}

DeviceContext* open(int32_t ordinal, OpStatus* status) {
  DeviceContext* device = nullptr;
  guarded(status, [&] { device = new DeviceContext(ordinal); });
  return device;
}

void close(DeviceContext* device) { delete device; }

void* allocate(DeviceContext* device, int64_t bytes, OpStatus* status) {
  void* memory = nullptr;
  on_device(device, status, [&] { memory = device->allocate(bytes); });
  return memory;
}

void* reserve(DeviceContext* device, int64_t bytes, OpStatus* status) {
  void* memory = nullptr;
  on_device(device, status, [&] { memory = device->reserve(bytes); });
  return memory;
}

void release(DeviceContext* device, void* memory) {
  OpStatus ignored;  // a lost device has no memory to give back
  on_device(device, &ignored, [&] { device->release(memory); });
}

int64_t free_bytes(DeviceContext* device, OpStatus* status) {
  int64_t bytes = 0;
  on_device(device, status, [&] { bytes = device->free_bytes(); });
  return bytes;
}

void write(DeviceContext* device, void* to, const void* from, int64_t bytes, OpStatus* status) {
  on_device(device, status, [&] { device->write(to, from, bytes); });
}

void read(DeviceContext* device, void* to, const void* from, int64_t bytes, OpStatus* status) {
  on_device(device, status, [&] { device->read(to, from, bytes); });
}

void fill(DeviceContext* device, void* to, int32_t byte, int64_t bytes, OpStatus* status) {
  on_device(device, status, [&] { device->fill(to, byte, bytes); });
}

DeviceMark* mark(DeviceContext* device, const void* from, int64_t bytes, OpStatus* status) {
  DeviceMark* mark = nullptr;
  on_device(device, status, [&] { mark = device->mark(from, bytes); });
  return mark;
}

void wait(DeviceContext* device, DeviceMark* mark, void* to, OpStatus* status) {
  // A mark is given back even of a device that was lost.
  guarded(status, [&] { device->wait(mark, to); });
  if (status->code == 1 + static_cast<int32_t>(ErrorCode::kDeviceLost))
    device->set_lost(status->message);
}

void begin_recording(DeviceContext* device, OpStatus* status) {
  on_device(device, status, [&] { device->begin_recording(); });
}

DeviceGraph* end_recording(DeviceContext* device, OpStatus* status) {
  DeviceGraph* graph = nullptr;
  on_device(device, status, [&] { graph = device->end_recording(); });
  return graph;
}

void launch_graph(DeviceContext* device, DeviceGraph* graph, OpStatus* status) {
  on_device(device, status, [&] { device->launch_graph(*graph); });
}

void release_graph(DeviceContext* device, DeviceGraph* graph) {
  OpStatus ignored;
  on_device(device, &ignored, [] {});  // the calls of this thread go to the device
  delete graph;
}

const Plugin kPlugin = {
    kPluginVersion, ZC_PLUGIN_NAME, &kBackend,     count,   facts,   prepare,
    open,           close,          allocate,      reserve, release, free_bytes,
    write,          read,           fill,          mark,    wait,    begin_recording,
    end_recording,  launch_graph,   release_graph,
};

}  // namespace
}  // namespace zc::cuda

extern "C" __attribute__((visibility("default"))) const zc::Plugin* zipcache_plugin() {
  return &zc::cuda::kPlugin;
}
