// Times llama.cpp's prefill and decode for benchmarks/engine.py. Reads one command a line, answers one number a line.
//   threads N       threads of everything that follows
//   clear N         forget all positions (N is for the other side)
//   prefill N L     seconds for N positions together; L = 1: with the last one's logits
//   decode N        seconds for N greedy steps of one position each
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "llama.h"

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "llama_driver: %s\n", what);
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) fail("usage: llama_driver MODEL N_CTX FLASH_ATTENTION(0|1)");
  llama_log_set([](ggml_log_level level, const char* text, void*) {
    if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
  }, nullptr);
  llama_backend_init();
  const double start = now();
  llama_model_params model_params = llama_model_default_params();
  // Not mapped: what llama.cpp does not repack then lies in huge pages too.
  model_params.load_mode = LLAMA_LOAD_MODE_NONE;
  model_params.progress_callback = [](float, void*) { return true; };
  llama_model* model = llama_model_load_from_file(argv[1], model_params);
  if (model == nullptr) fail("the model does not load");
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(std::atoi(argv[2]));
  params.n_batch = params.n_ubatch = 512;
  params.flash_attn_type = std::atoi(argv[3]) != 0 ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.no_perf = true;
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) fail("no context");
  const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  llama_batch batch = llama_batch_init(512, 0, 1);
  llama_pos position = 0;
  llama_token token = 1;
  const auto compute = [&](int count, bool logits) {
    batch.n_tokens = count;
    for (int i = 0; i < count; ++i, ++position) {
      batch.token[i] = token;
      batch.pos[i] = position;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = logits && i + 1 == count;
      if (count > 1) token = 259 + (position * 7919) % (n_vocab - 259);
    }
    if (llama_decode(context, batch) != 0) fail("llama_decode failed");
    llama_synchronize(context);
    if (!logits) return;
    const float* row = llama_get_logits_ith(context, -1);
    token = 0;
    for (int i = 1; i < n_vocab; ++i)
      if (row[i] > row[token]) token = i;
  };
  std::cout << now() - start << std::endl;
  std::string command;
  while (std::cin >> command) {
    const double from = now();
    int count = 0, logits = 0;
    if (command == "threads" && std::cin >> count) {
      llama_set_n_threads(context, count, count);
    } else if (command == "clear" && std::cin >> count) {
      llama_memory_clear(llama_get_memory(context), true);
      position = 0;
    } else if (command == "prefill" && std::cin >> count >> logits && count <= 512) {
      compute(count, logits != 0);
    } else if (command == "decode" && std::cin >> count) {
      for (int i = 0; i < count; ++i) compute(1, true);
    } else {
      fail("unknown command");
    }
    std::cout << now() - from << std::endl;
  }
}
