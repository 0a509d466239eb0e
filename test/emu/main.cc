#include "test/emu/harness.h"

int main(int argc, char** argv) { return zc::test::run_tests(argc, argv); }
