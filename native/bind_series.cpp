// The Python face of the coder of samples.
#include "bindings.h"
#include "series_coder.h"

using Samples = Exactly<const int64_t, nb::ndim<2>>;
using SamplesOut = Exactly<int64_t, nb::ndim<2>>;

namespace {

void fits(int64_t rows, int64_t channels) {
    need(channels >= 1 && channels <= genmote::kMostChannels, "samples: from 1 to 64 channels are coded together");
    need(rows <= kMostRows, "samples: too many rows");
}

nb::bytes encode(Samples samples) {
    const auto rows = static_cast<int64_t>(samples.shape(0)), channels = static_cast<int64_t>(samples.shape(1));
    fits(rows, channels);
    for (int64_t i = 0; i < rows * channels; i++)
        need(samples.data()[i] < genmote::kMostSample && samples.data()[i] > -genmote::kMostSample, "samples: wanted numbers of less than 48 bits");
    std::vector<uint8_t> coded;
    {
        nb::gil_scoped_release free;
        coded = genmote::encode_samples(samples.data(), rows, static_cast<int>(channels));
    }
    return nb::bytes(reinterpret_cast<const char*>(coded.data()), coded.size());
}

void decode(Bytes coded, SamplesOut samples) {
    const auto rows = static_cast<int64_t>(samples.shape(0)), channels = static_cast<int64_t>(samples.shape(1));
    fits(rows, channels);
    nb::gil_scoped_release free;
    genmote::decode_samples(coded.data(), static_cast<int64_t>(coded.shape(0)), samples.data(), rows, static_cast<int>(channels));
}

}  // namespace

void bind_series(nb::module_& module) {
    using namespace nb::literals;
    module.def("encode_samples", &encode, "samples"_a, "The bytes of whole numbers (rows, channels) int64: see genmote/signals/adaptive.py.");
    module.def("decode_samples", &decode, "coded"_a, "samples"_a, "Fill samples (rows, channels) int64 with what was coded.");
}
