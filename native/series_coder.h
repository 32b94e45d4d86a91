// Lossless coding of whole numbers, many channels side by side: what linear predictors that learn as they go expect, a
// distribution around it that learns too, and an arithmetic coder. genmote/signals/adaptive.py is its twin in Python and tells
// how it works. Encoder and decoder do the same arithmetic: + - * / and square roots of doubles in one fixed order, no library
// function, no fused product, so that every machine reads what another wrote.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace genmote {

constexpr int kMostChannels = 64;
constexpr int64_t kMostSample = int64_t(1) << 48;  // samples lie below it, and above minus it

constexpr int64_t kStateSize = 320 * 7 + 320 + 256 + 32 + 16 + 7 + 3 + 1 + 2 * 5 * 4096;  // what a channel learnt: see Channel::each_of
int series_inputs(int channels);  // numbers that a channel's next sample is predicted from, what a model expects of it the last

// What a channel is coded with beside its samples. Each list is a row of the arrays for each channel, or -1 for none.
struct Help {
    std::vector<int> told, practised;
    const double* cuts = nullptr;  // (n, bins + 1) where the bins end that a model tells the shares of
    int bins = 0;
    const double *moments = nullptr, *cross = nullptr, *states = nullptr;  // (m, inputs, inputs), (m, inputs), (m, kStateSize)
};

// Codes as far as what it is told reaches: a model's logits of a sample may need the samples before it. `samples` (rows, channels),
// the cuts and the bytes stay the caller's; without bytes it encodes.
class SeriesCoder {
public:
    SeriesCoder(int64_t* samples, int64_t rows, int channels, const Help& help, const uint8_t* bytes = nullptr, int64_t count = 0);
    ~SeriesCoder();
    SeriesCoder(const SeriesCoder&) = delete;
    SeriesCoder& operator=(const SeriesCoder&) = delete;

    bool go(const float* logits, int64_t count);  // (count, bins) of the next samples that a model tells of; true: it waits for more
    void learnt(double* states);                  // (channels, kStateSize)
    std::vector<uint8_t> finish();                // what was encoded

private:
    struct Inside;
    int64_t* samples_;
    int64_t rows_;
    int bins_;
    std::unique_ptr<Inside> inside_;
};

std::vector<uint8_t> encode_samples(const int64_t* samples, int64_t rows, int channels);  // samples (rows, channels)
void decode_samples(const uint8_t* bytes, int64_t count, int64_t* samples, int64_t rows, int channels);

}  // namespace genmote
