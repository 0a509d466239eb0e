{
  # The CPU addon for those who prefer node-gyp: `npx node-gyp rebuild`. Same sources and same
  # output as CMakeLists.txt. package.json says "gypfile": false, so that npm never runs this file
  # by itself.
  "targets": [
    {
      "target_name": "zipcache",
      "sources": [
        "<!@(node -p \"fs.readFileSync('csrc/sources.txt', 'utf8').trim()\")"
      ],
      "include_dirs": [
        ".",
        "<!(node -p \"require('node-addon-api').include_dir\")"
      ],
      "defines": [
        "NAPI_VERSION=9", "NAPI_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "ZC_VERSION=<!(node -p \"require('./package.json').version\")"
      ],
      "cflags": [
        "-Wall", "-Wextra", "-O3", "-fno-math-errno", "-fno-trapping-math",
        "-ffp-contract=off", "-fvisibility=hidden"
      ],
      # Node's own common.gypi turns off exceptions and run-time types, and may ask for another
      # standard.
      "cflags_cc!": [
        "-fno-exceptions", "-fno-rtti", "-std=gnu++14", "-std=gnu++17", "-std=gnu++20"
      ],
      "cflags_cc": ["-std=c++20", "-fexceptions", "-frtti", "-fvisibility-inlines-hidden"],
      "ldflags": ["-pthread"],
      "conditions": [["OS=='linux'", { "libraries": ["-ldl"] }]],
      "xcode_settings": {
        "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
        "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
        "GCC_ENABLE_CPP_RTTI": "YES",
        "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
        "OTHER_CFLAGS": [
          "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"
        ]
      }
    }
  ]
}
