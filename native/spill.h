// Cold memory on disk: ranges of one mapping are written to an unlinked file at the same offsets, given back, and read again
// before they are needed, one request ahead by a thread of its own.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace genmote {

struct SpillError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Spill {
  public:
    static constexpr size_t kPage = 4096;
    struct Range { uint8_t* at; size_t bytes; };  // whole pages of the mapping

    Spill(const std::string& folder, uint8_t* base);  // SpillError where no file can be made there
    ~Spill();
    Spill(const Spill&) = delete;

    void write(const Range& r);                     // SpillError: the disk is full, or fails; the memory is as it was
    void read(const Range& r);
    void read_ahead(std::vector<Range> ranges);      // begin; one request at a time
    void finish();                                  // until it is done; SpillError where it failed
    uint64_t bytes_written() const { return written_; }
    uint64_t bytes_read() const { return read_; }

  private:
    void work();
    const std::string folder_;
    uint8_t* const base_;
    int file_ = -1;
    std::atomic<uint64_t> written_{0}, read_{0};
    std::mutex lock_;
    std::condition_variable changed_;
    std::vector<Range> wanted_;
    bool busy_ = false, stop_ = false;
    std::string failed_;
    std::thread thread_;
};

}  // namespace genmote
