# llama.cpp as the tests want it, soon built: its many small files, one a model, some at a time; of what its programs have in
# common what reads a control vector, and what that needs.
cmake_language(DEFER CALL set_target_properties llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
cmake_language(DEFER CALL set_property TARGET llama-common PROPERTY SOURCES
    common.cpp fit.cpp json.cpp llguidance.cpp log.cpp ngram-cache.cpp ngram-map.cpp ngram-mod.cpp reasoning-budget.cpp
    sampling.cpp speculative.cpp trie.cpp unicode.cpp)
