#include "thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace bert_kd {
namespace {

constexpr int kMostHelpers = 255;

// Waking a sleeping thread takes tens of microseconds: as long as a whole short text. Requests that
// follow each other that closely find their helper awake.
constexpr std::chrono::microseconds kSpin{50};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `done` became true within kSpin.
template <class Done>
bool spin(const Done& done) {
  if (done()) return true;
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int round = 0; round < 16; ++round) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  return false;
}

// One call of parallel_for. It lies on its caller's stack.
class Job {
 public:
  Job(int tasks, const Work& work) : tasks_(tasks), work_(work) {}

  void run(int worker) {
    try {
      for (;;) {
        const int task = next_.fetch_add(1, std::memory_order_relaxed);
        if (task >= tasks_) return;
        work_(task, worker);
      }
    } catch (...) {
      next_.store(tasks_, std::memory_order_relaxed);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void add_helper() { helpers_.fetch_add(1, std::memory_order_relaxed); }

  // The last that a helper does with the job.
  void leave() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (helpers_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
  }

  void wait_for_helpers() {
    const auto done = [this] { return helpers_.load(std::memory_order_acquire) == 0; };
    spin(done);
    // Even where all have left: the last one may hold the lock still.
    std::unique_lock<std::mutex> lock(mutex_);
    left_.wait(lock, done);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int tasks_;
  const Work& work_;
  std::atomic<int> next_{0};
  std::atomic<int> helpers_{0};
  std::mutex mutex_;
  std::condition_variable left_;
  std::exception_ptr error_;
};

class Helper {
 public:
  // Throws std::system_error where no thread can be had.
  Helper() { std::thread(&Helper::live, this).detach(); }

  // Makes this helper the caller's own, if it is idle.
  bool claim() {
    Job* idle = nullptr;
    return job_.compare_exchange_strong(idle, taken());
  }

  // Of a claimed helper.
  void begin(Job& job, int worker) {
    job.add_helper();
    worker_ = worker;
    job_.store(&job);
    if (asleep_.load()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      called_.notify_one();
    }
  }

  // Takes the job back from a helper that has not begun it.
  void call_off(Job& job) {
    Job* expected = &job;
    if (job_.compare_exchange_strong(expected, nullptr)) job.leave();
  }

 private:
  // What stands for a job while one is being handed over or worked at.
  Job* taken() { return reinterpret_cast<Job*>(this); }

  [[noreturn]] void live() {
    const auto is_called = [this] {
      Job* const job = job_.load();
      return job && job != taken();
    };
    for (;;) {
      if (!spin(is_called)) {
        asleep_.store(true);
        std::unique_lock<std::mutex> lock(mutex_);
        called_.wait(lock, is_called);
        asleep_.store(false);
      }
      Job* job = job_.load();
      if (!job || job == taken() || !job_.compare_exchange_strong(job, taken())) continue;
      job->run(worker_);
      job_.store(nullptr);
      job->leave();
    }
  }

  std::atomic<Job*> job_{nullptr};  // null: idle
  std::atomic<int> worker_{0};
  std::atomic<bool> asleep_{false};
  std::mutex mutex_;
  std::condition_variable called_;
};

// Helpers are made when first wanted and live as long as the process.
class Pool {
 public:
  // An idle helper, claimed; null where none can be had.
  Helper* claim() {
    const int known = count_.load(std::memory_order_acquire);
    for (int at = 0; at < known; ++at) {
      if (helpers_[at]->claim()) return helpers_[at];
    }
    return nullptr;
  }

  // Sees to it that there are `wanted` helpers, idle or not.
  void grow(int wanted) {
    if (count_.load(std::memory_order_acquire) >= wanted) return;
    const std::unique_lock<std::mutex> lock(growing_, std::try_to_lock);
    if (!lock) return;
    try {
      for (int at = count_.load(); at < wanted; ++at) {
        helpers_[at] = new Helper;
        count_.store(at + 1, std::memory_order_release);
      }
    } catch (const std::system_error&) {
      // No thread is to be had: the caller does the work alone.
    }
  }

  static Pool& shared() {
    Pool* pool = current_.load(std::memory_order_acquire);
    if (!pool) {
      static std::once_flag forks;
      std::call_once(forks, [] { pthread_atfork(nullptr, nullptr, forget); });
      Pool* const fresh = new Pool;
      if (current_.compare_exchange_strong(pool, fresh)) return *fresh;
      delete fresh;
    }
    return *pool;
  }

 private:
  // Threads do not outlive a fork: the child makes a pool of its own. The old one is left as it
  // is, since its locks may be held for ever.
  static void forget() { current_.store(nullptr); }

  static std::atomic<Pool*> current_;
  std::mutex growing_;
  std::atomic<int> count_{0};
  Helper* helpers_[kMostHelpers] = {};
};

std::atomic<Pool*> Pool::current_{nullptr};

}  // namespace

void parallel_for(int tasks, int threads, const Work& work) {
  int wanted = (threads < tasks ? threads : tasks) - 1;
  if (wanted > kMostHelpers) wanted = kMostHelpers;
  if (wanted <= 0) {
    for (int task = 0; task < tasks; ++task) work(task, 0);
    return;
  }
  Job job(tasks, work);
  Pool& pool = Pool::shared();
  pool.grow(wanted);
  Helper* helpers[kMostHelpers];
  int claimed = 0;
  while (claimed < wanted) {
    Helper* const helper = pool.claim();
    if (!helper) break;
    helper->begin(job, claimed + 1);
    helpers[claimed++] = helper;
  }
  job.run(0);
  for (int at = 0; at < claimed; ++at) helpers[at]->call_off(job);
  job.wait_for_helpers();
}

}  // namespace bert_kd
