// What one core can do at most, to read the rows of a benchmark against. Compiled for the machine
// it runs on by bench/ceilings.py; callers time the calls. REAL is float or double.

// As many sums as there are registers for, less two for the factors: enough to keep every FMA unit
// busy through the latency of one.
#ifdef __AVX512F__
enum { WIDTH = 64, SUMS = 24 };
#elif defined(__AVX__)
enum { WIDTH = 32, SUMS = 12 };
#elif defined(__aarch64__)
enum { WIDTH = 16, SUMS = 24 };
#else
enum { WIDTH = 16, SUMS = 12 };
#endif

typedef REAL vec __attribute__((vector_size(WIDTH)));
typedef long long ints __attribute__((vector_size(WIDTH)));

// Operations in one turn of the loop of `multiply`, a product and a sum being two.
long operations(void) { return 2L * SUMS * (WIDTH / (long)sizeof(REAL)); }

double multiply(long turns) {
  vec sums[SUMS], factor, term, total = {0};
  for (unsigned lane = 0; lane < WIDTH / sizeof(REAL); ++lane) factor[lane] = 0.5, term[lane] = 1;
  for (int i = 0; i < SUMS; ++i) sums[i] = term * (REAL)i;
  for (long turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 32
    for (int i = 0; i < SUMS; ++i) sums[i] = sums[i] * factor + term;
  }
  for (int i = 0; i < SUMS; ++i) total += sums[i];
  return (double)total[0];
}

// Reads `bytes`, a multiple of 8 * WIDTH, `turns` times.
long long read_all(const char* data, long bytes, long turns) {
  ints sums[8] = {{0}};
  for (long turn = 0; turn < turns; ++turn) {
    for (const ints* p = (const ints*)data; p != (const ints*)(data + bytes); p += 8) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) sums[i] += p[i];
    }
    __asm__ volatile("" ::: "memory");
  }
  for (int i = 1; i < 8; ++i) sums[0] += sums[i];
  return sums[0][0];
}
