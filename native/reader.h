// Reads parts of one file into memory by threads of its own, several at once and past the page cache, so that a disk is
// kept busy while the processor computes and no page is charged twice.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace genmote {

// A read that failed, fell short, or came from a file that changed since it was opened.
struct ReadError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Reader {
  public:
    static constexpr int64_t kBlock = 4096;  // what unbuffered reads are aligned to

    // `direct`: unbuffered where the file system can, else through the page cache, whose pages are let go again.
    Reader(std::string path, int threads, bool direct);
    ~Reader();
    Reader(const Reader&) = delete;

    // Bytes that a read of [offset, offset + n) takes in memory: whole blocks of the file.
    static size_t room(int64_t offset, size_t n) {
        return static_cast<size_t>((offset + static_cast<int64_t>(n) + kBlock - 1) / kBlock * kBlock - offset / kBlock * kBlock);
    }

    // Begin to read [offset, offset + n): the bytes will lie from to + offset % kBlock on. `to` is aligned to kBlock and has
    // room(offset, n). Reads of a lower `priority` go first. ReadError where the file ends before.
    uint64_t submit(int64_t offset, size_t n, uint8_t* to, int priority);
    // Until the read is done; ReadError where it failed. Every few hundredths of a second `waiting` is called: it may throw,
    // and the read goes on. A ticket is good for one wait that returns, or one cancel.
    void wait(uint64_t ticket, const std::function<void()>& waiting = nullptr);
    bool done(uint64_t ticket);    // true also where it failed
    void cancel(uint64_t ticket);  // nothing is written to its memory after this returns
    bool withdraw(uint64_t ticket);  // cancel, where nothing of it is being read at this moment; else false, and the read goes on
    void hasten(uint64_t ticket, int priority);  // put what is not begun in front of reads of a higher priority
    void check();                  // ReadError where the file changed

    const std::string path;
    bool direct() const { return direct_; }
    int64_t size() const { return stamp_.size; }
    struct Stamp {
        uint64_t device, inode;
        int64_t size, mtime_ns;
        bool operator==(const Stamp& o) const { return device == o.device && inode == o.inode && size == o.size && mtime_ns == o.mtime_ns; }
    };
    const Stamp& stamp() const { return stamp_; }
    uint64_t bytes_read() const { return bytes_read_; }
    double waited_s() const { return static_cast<double>(waited_ns_) * 1e-9; }  // what `wait` took, all of them together

  private:
    struct Ticket {
        int left = 0;  // pieces
        std::string fault;
    };
    struct Piece {
        uint64_t ticket;
        int64_t begin, end, need;  // of the file: whole blocks, of which the file must have those before `need`
        uint8_t* to;
        int priority;
    };
    void enqueue(const std::vector<Piece>& pieces, int priority);
    std::vector<Piece> dequeue(uint64_t ticket);  // its pieces that are not begun
    void work(size_t id);
    void start();
    std::string read(const Piece& piece);  // what went wrong, or ""
    std::string changed() const;
    std::string fault(int64_t at, const std::string& why) const;
    void finish(uint64_t ticket, const std::string& fault);
    static void before_fork();
    static void after_fork(bool child);
    static const int registered_;

    int file_ = -1, buffered_ = -1;
    std::atomic<bool> direct_;
    Stamp stamp_{};
    std::mutex mutex_;
    std::condition_variable work_, done_;
    std::deque<Piece> queue_;  // by priority, then by age
    std::vector<Piece> flying_;  // a thread's own: ticket 0 where it has none
    std::unordered_map<uint64_t, Ticket> tickets_;
    uint64_t next_ = 1;
    const int threads_;
    bool stop_ = false;
    std::vector<std::thread> workers_;  // begun with the first read
    std::atomic<uint64_t> bytes_read_{0}, waited_ns_{0};
};

}  // namespace genmote
