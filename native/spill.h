// Cold memory on disk: ranges of one mapping are written to an unlinked file at the same offsets, given back, and read again
// before they are needed, one request ahead by a thread of its own.
#pragma once
#include <sys/types.h>

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
    static constexpr size_t kBlock = 4096;  // what unbuffered writes are aligned to
    struct Range { uint8_t* at; size_t bytes; };  // whole blocks of the mapping

    Spill(const std::string& folder, uint8_t* base);  // SpillError where no file can be made there, or no thread be had
    ~Spill();
    Spill(const Spill&) = delete;

    void write(const Range& r);                     // SpillError: the disk is full, or fails; the memory is as it was
    void read(const Range& r);
    void read_ahead(std::vector<Range> ranges);      // begin; one request at a time
    void finish();                                  // until it is done; SpillError where it failed
    void forget();                                  // what was written may be written over from now on

    // In a process forked from the one that made this, there is no thread: call none but these, `read` until the other
    // process forgets (then SpillError), and `write`, which is a SpillError.
    bool inherited() const;
    void leave();  // instead of being destroyed
    uint64_t bytes_written() const { return written_; }
    uint64_t bytes_read() const { return read_; }

  private:
    void work();
    void check() const;
    const std::string folder_;
    uint8_t* const base_;
    const pid_t owner_;
    std::atomic<uint64_t>* forgotten_;  // how often, in memory that forked processes share
    uint64_t seen_ = 0;                 // the same, as of this process's beginning
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
