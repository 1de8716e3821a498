// Worker threads that all callers share.
//
// A caller always works itself, and takes only helpers that are idle: it never waits for another
// caller's work. Helpers wait for more work for some microseconds, then sleep.

#pragma once

namespace bert_kd {

// A reference to something callable that outlives the call: no allocation, unlike std::function.
class Work {
 public:
  template <class Callable>
  Work(const Callable& callable)
      : target_(&callable), call_([](const void* target, int task, int worker) {
          (*static_cast<const Callable*>(target))(task, worker);
        }) {}

  void operator()(int task, int worker) const { call_(target_, task, worker); }

 private:
  const void* target_;
  void (*call_)(const void*, int, int);
};

// Calls work(task, worker) for all tasks 0 … tasks − 1, in order of their start, on up to `threads`
// threads; no two tasks run at once with the same `worker`, 0 ≤ worker < threads. Returns when all
// are done. The first exception of any task is thrown again here, and tasks not begun are left out.
void parallel_for(int tasks, int threads, const Work& work);

}  // namespace bert_kd
