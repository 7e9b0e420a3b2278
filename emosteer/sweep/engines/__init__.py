"""Where a sweep runs. Each engine is a folder whose `driver` has one function of the same shape:

    run_NAME(runner, works, store, progress, *, flush_seconds, sweep, **options)

It takes what is left to do (`work`), writes what it finds (`writer`) and says how far it is (`progress`);
`named` finds it. `local` runs a model in this process, `vllm` one in vLLM, proved against it; the workers of `ray`
run one of the two.
"""
