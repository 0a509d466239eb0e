#include "csrc/napi/state.h"

namespace {

#define ZC_TEXT(token) #token
#define ZC_TEXT_OF(macro) ZC_TEXT(macro)
// Of package.json: lib/native/load.ts refuses the addon of another version.
constexpr const char* kVersion = ZC_TEXT_OF(ZC_VERSION);

// setErrorClass(ZipCacheError): what native errors become in this environment. lib/native/load.ts
// calls it first.
Napi::Value set_error_class(const Napi::CallbackInfo& info) {
  zc::napi::state(info.Env()).error_class = Napi::Persistent(info[0].As<Napi::Function>());
  return info.Env().Undefined();
}

Napi::Value error_codes(Napi::Env env) {
  Napi::Array codes = Napi::Array::New(env);
#define ZC_ERROR_CODE(name, text) codes.Set(codes.Length(), text);
#include "csrc/core/error_codes.def"
#undef ZC_ERROR_CODE
  return codes;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new zc::napi::AddonState());
  exports.Set("setErrorClass", Napi::Function::New(env, set_error_class, "setErrorClass"));
  exports.Set("errorCodes", error_codes(env));
  exports.Set("version", kVersion);
  zc::napi::register_handles(exports);
  zc::napi::register_ops(exports);
  zc::napi::register_stored_weights(exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(zipcache, init)
