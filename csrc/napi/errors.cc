#include "csrc/napi/state.h"

namespace zc::napi {

Napi::Value to_js(Napi::Env env, const Error& error) {
  Napi::Object fields = Napi::Object::New(env);
  if (!error.op.empty()) fields.Set("op", error.op);
  if (!error.argument.empty()) fields.Set("argument", error.argument);
  return state(env).error_class.New({Napi::String::New(env, error_code_name(error.code)),
                                     Napi::String::New(env, error.message), fields});
}

void throw_js(Napi::Env env, const Error& error) { throw Napi::Error(env, to_js(env, error)); }

}  // namespace zc::napi
