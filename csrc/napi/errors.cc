#include "csrc/napi/state.h"

#include <cctype>

namespace zc::napi {

namespace {

// "flash_attention" of C++ is "flashAttention" of JavaScript.
std::string camel_case(const std::string& name) {
  std::string text;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool begins_word = name[i] == '_' && i + 1 < name.size();
    text += begins_word ? static_cast<char>(std::toupper(name[++i])) : name[i];
  }
  return text;
}

}  // namespace

Napi::Value to_js(Napi::Env env, const Error& error) {
  Napi::Object fields = Napi::Object::New(env);
  if (!error.op.empty()) fields.Set("op", camel_case(error.op));
  if (!error.argument.empty()) fields.Set("argument", error.argument);
  return state(env).error_class.New({Napi::String::New(env, error_code_name(error.code)),
                                     Napi::String::New(env, error.message), fields});
}

void throw_js(Napi::Env env, const Error& error) { throw Napi::Error(env, to_js(env, error)); }

}  // namespace zc::napi
